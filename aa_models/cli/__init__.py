"""The command line `aa-models`: one file a command, and `main` that chooses between them."""
