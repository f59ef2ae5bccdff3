"""Structure of networks: where the units of every hidden layer live. Reads shapes and graphs, never values."""
