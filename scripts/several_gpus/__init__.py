"""What runs on several GPUs, measured against one: :mod:`bench_several_gpus`."""
