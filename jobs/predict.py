"""Score videos as a Ray job; the arguments are those of `dfdc-ray predict`.

ray job submit --working-dir . -- python jobs/predict.py s3://bucket/unseen.mp4 --checkpoint s3://bucket/model/best --json
"""

import sys

from dfdc_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
