"""Train an encoder.

    accelerate launch train.py                                        # on the built-in corpus: outputs/mlm
    accelerate launch train.py --config recipes/classic.yaml          # the textbook encoder
    accelerate launch train.py --train_file my.txt --output_dir out   # your own text
    torchrun --nproc_per_node 2 train.py                              # two processes, on CPUs or GPUs
    python train.py --help                                            # every option

What happens is in hf_tfenc/training: run.py puts a run together, trainer.py is the loop.
"""

from hf_tfenc.training.run import main

if __name__ == "__main__":
    main()
