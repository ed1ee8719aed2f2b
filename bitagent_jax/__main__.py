"""``python -m bitagent_jax <verb>``: the same as the console script ``bitagent``."""

from bitagent_jax.cli import main

if __name__ == "__main__":
    main()
