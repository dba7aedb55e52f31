"""What one finds out about a network: its answers, attention maps, parameters and multiply-adds."""
