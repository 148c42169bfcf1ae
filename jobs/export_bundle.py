"""Export a checkpoint on the cluster that this job was submitted to; one process on the head node is enough.

ray job submit --working-dir . -- python jobs/export_bundle.py /shared/runs/one/ckpt.pt
"""

import sys

from parvae_export.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
