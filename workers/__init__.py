"""Where numbers live and time passes: the queue, the devices, the processes."""
