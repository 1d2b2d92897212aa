# What runs on the nodes of a cluster, in two stages. docs/cluster.md says how they are used.
#
#   docker build --target environment -t dfdc-ray:0.1.0 .                                                 head and GPU workers
#   docker build --target environment -t dfdc-ray:0.1.0-preprocess --build-arg LOCK=preprocess.lock .     CPU workers: no torch, 6 GB less
#   docker build -t dfdc-ray:0.1.0-job .                                                                  the same two with the code,
#   docker build -t dfdc-ray:0.1.0-preprocess-job --build-arg LOCK=preprocess.lock .                      for Kubernetes
#
# torch's wheels carry CUDA themselves, so the CPU image of Ray serves both; the host brings the NVIDIA driver.
FROM rayproject/ray:2.60.0-py311-cpu AS environment

ARG LOCK=all.lock
COPY requirements/${LOCK} /tmp/${LOCK}
RUN pip install --no-cache-dir --no-deps --require-hashes -r /tmp/${LOCK}

# What the NVIDIA container runtime lets in; without that runtime they mean nothing.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# `ray job submit --working-dir .` brings the code along. A RayJob has nobody to upload it from, so there it lies in the image.
FROM environment AS job

COPY dfdc_ray /home/ray/app/dfdc_ray
COPY jobs /home/ray/app/jobs
ENV PYTHONPATH=/home/ray/app
