"""What is shown: numbers first, then text."""
