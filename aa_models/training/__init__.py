"""Training and validation on timm's data, optimiser, scheduler, task and checkpoint parts."""
