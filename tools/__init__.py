"""Floor 2: the twelve CNN tools, their networks, their training and their weights."""
