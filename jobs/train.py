"""Train a detector as a Ray job; the options are those of `dfdc-ray train`.

ray job submit --working-dir . -- python jobs/train.py --faces s3://bucket/faces --out s3://bucket/model --gpu --workers 2
"""

import sys

from dfdc_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
