"""Floor 2: super-resolution guided by what is where in the image (SFT-GAN, Wang et al., CVPR 2018).

So far: the modulation layer, the condition network and the generator. Segmentation, training and the tool that
the agent can choose come next; see CHANGELOG.md.
"""
