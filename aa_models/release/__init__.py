"""The folder of a checkpoint: weights, config, model card, row of results; its way to the Hub and to other runtimes."""
