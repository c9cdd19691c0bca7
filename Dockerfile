# The image of cluster.yaml and examples/kuberay/rayjob.yaml: Ray, torch with its CUDA, and ray-align.
#     docker build -t registry.example.com/ray-align:0.1.0 . && docker push registry.example.com/ray-align:0.1.0
# torch's default wheel is built for CUDA 13 and wants NVIDIA driver 580 or newer on the machine. For drivers from 525 on:
#     docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu129 ...
# Ray's image without CUDA: the wheels bring CUDA, cuDNN and NCCL, and another cuDNN beside them would be found first.
FROM rayproject/ray:2.60.0-py311-cpu
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --no-cache-dir "torch>=2.11,<2.14" --index-url "$TORCH_INDEX"
COPY --chown=ray . /home/ray/ray-align
RUN pip install --no-cache-dir -e "/home/ray/ray-align[s3]"
WORKDIR /home/ray/ray-align
