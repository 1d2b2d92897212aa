"""Preprocess a corpus as a Ray job; the options are those of `dfdc-ray preprocess`.

ray job submit --working-dir . -- python jobs/preprocess.py --corpus s3://b/dfdc --out s3://b/faces --resource preprocess --workers 319
"""

import sys

from dfdc_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["preprocess", *sys.argv[1:]]))
