"""What can be found out about a network: its answers, attention maps, parameters and multiply-adds."""
