"""Files: where tensors and plans live on disk, and nothing else."""
