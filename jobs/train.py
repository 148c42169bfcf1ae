"""Train on the cluster that this job was submitted to.

    ray job submit --working-dir . -- python jobs/train.py /shared/data -o /shared/runs/one --workers 4

Takes the options of `vae train`; data and run folder must be places that every node sees.
"""

import sys

from parvae_pipeline.commands import train

if __name__ == "__main__":
    sys.exit(train.main(["--address", "auto", *sys.argv[1:]], prog_name="jobs/train.py"))
