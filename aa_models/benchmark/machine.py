"""What times were taken on: they tell nothing without it."""
import timm
import torch

from aa_models.cpu import cpu_name, instruction_sets
from aa_models.layers.cpp_attention import available_kernel


def describe_machine(device: torch.device) -> str:
    """The processor and versions in one line, of a CPU also instruction sets, threads and how it computes attention."""
    if device.type == 'cuda':
        machine = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        sets = ' '.join(instruction_sets()) or 'instruction sets unknown'
        # torch may have been told to use less than there is
        used = torch.backends.cpu.get_cpu_capability()
        kernel = 'in C++' if available_kernel() else "by PyTorch's calls"
        machine = (f'{cpu_name()} ({sets}; torch uses {used}), {threads} thread{"s" if threads > 1 else ""}, '
                   f'attention {kernel}')
    return f'{machine}, torch {torch.__version__}, timm {timm.__version__}'
