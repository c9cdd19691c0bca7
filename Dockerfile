# An image for cluster.yaml and examples/kuberay/rayjob.yaml: Ray with CUDA, and ray-align.
#     docker build -t ray-align .
FROM rayproject/ray:2.60.0-py311-gpu
COPY --chown=ray . /home/ray/ray-align
RUN pip install --no-cache-dir "torch>=2.11,<2.14" -e "/home/ray/ray-align[s3]"
WORKDIR /home/ray/ray-align
