"""The mathematics: tensors in, frozen values out. Nothing here knows modules, files or logging."""
