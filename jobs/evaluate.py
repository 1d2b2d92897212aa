"""Judge a checkpoint as a Ray job; the options are those of `dfdc-ray evaluate`.

ray job submit --working-dir . -- python jobs/evaluate.py --faces s3://b/faces --checkpoint s3://b/model/best --out s3://b/report
"""

import sys

from dfdc_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
