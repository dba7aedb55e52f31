"""What a cfg says of CIFAR-10: the statistics of its training images and the names of its classes."""

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

# in the order of the data set's own `batches.meta`, which is alphabetical
CIFAR10_LABELS = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
