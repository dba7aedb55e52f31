"""What times were taken on: they tell nothing without it."""
import timm
import torch

from aa_models.cpu import cpu_name, instruction_sets


def describe_machine(device: torch.device) -> str:
    """The processor, its instruction sets and threads where it is a CPU, and the versions, in one line."""
    if device.type == 'cuda':
        machine = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        sets = ' '.join(instruction_sets()) or 'instruction sets unknown'
        # torch may have been told to use less than there is
        used = torch.backends.cpu.get_cpu_capability()
        machine = f'{cpu_name()} ({sets}; torch uses {used}), {threads} thread{"s" if threads > 1 else ""}'
    return f'{machine}, torch {torch.__version__}, timm {timm.__version__}'
