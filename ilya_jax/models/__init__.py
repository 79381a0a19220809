"""One Linen file per architecture: arrays in, arrays out."""
