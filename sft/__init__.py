"""Floor 2: super-resolution guided by what is where in the image (SFT-GAN, Wang et al., CVPR 2018).

`segmenter` says what is where, `generator` enlarges by four with that knowledge, `super_resolver` is both as one
function, `tool` the same for the agent to choose, `upscale` for photographs. README.md says how they are trained.
"""
