# The environment of a cluster node, without the code: `ray job submit --working-dir .` brings that. docs/cluster.md says how it is used.
#
#   docker build -t dfdc-ray:0.1.0 .                                                          head and GPU workers
#   docker build -t dfdc-ray:0.1.0-preprocess --build-arg LOCK=preprocess.lock .              CPU workers: no torch, 6 GB less
#
# torch's wheels carry CUDA themselves, so the CPU image of Ray serves both; the host brings the NVIDIA driver.
FROM rayproject/ray:2.60.0-py311-cpu

ARG LOCK=all.lock
COPY requirements/${LOCK} /tmp/${LOCK}
RUN pip install --no-cache-dir --no-deps --require-hashes -r /tmp/${LOCK}

# What the NVIDIA container runtime lets in; without that runtime they mean nothing.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
