"""One rank of a training run: what the deepspeed launcher starts once per GPU, and what runs alone without it.

deepspeed --module trainer.train runs/NAME/config.yaml
python -m trainer.train recipes/easyvqa.yaml optim.lr=3e-4
"""

if __name__ == "__main__":
    # Here, because the workers of the loader run this file again under another name, and would import it all.
    from trainer.engine.process import leave
    from trainer.training.arrival import arrive

    def load():
        from trainer.training.rank import train

        return train

    leave(arrive(None, load))
