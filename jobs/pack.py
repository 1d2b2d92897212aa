"""Pack face shards as a Ray job; the options are those of `dfdc-ray pack`.

ray job submit --working-dir . -- python jobs/pack.py --faces s3://bucket/faces --out s3://bucket/packed
"""

import sys

from dfdc_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["pack", *sys.argv[1:]]))
