#!/bin/bash
# Builds the image for SageMaker on an EC2 machine with Docker and the AWS CLI, and pushes it.
#
#   docker/sagemaker/build-ec2.sh [BACKEND] [REPOSITORY]
#
# BACKEND is cuda (the default) or another of docker/Dockerfile; REPOSITORY, headstock by default,
# is created in the machine's region where it is missing. AWS_REGION names another region, TAG
# another tag than the backend's name, TORCH_INDEX an index of packages for PyTorch.
set -euo pipefail
cd "$(dirname "$0")/../.."

backend=${1:-cuda}
repository=${2:-headstock}
tag=${TAG:-$backend}
region=${AWS_REGION:-$(aws configure get region)}
account=$(aws sts get-caller-identity --query Account --output text)
registry=$account.dkr.ecr.$region.amazonaws.com
image=$registry/$repository:$tag

if ! aws ecr describe-repositories --region "$region" --repository-names "$repository" >/dev/null 2>&1; then
    aws ecr create-repository --region "$region" --repository-name "$repository" \
        --image-scanning-configuration scanOnPush=true >/dev/null
fi
aws ecr get-login-password --region "$region" \
    | docker login --username AWS --password-stdin "$registry"

docker build --file docker/Dockerfile --target sagemaker --platform linux/amd64 \
    --build-arg "BACKEND=$backend" ${TORCH_INDEX:+--build-arg "TORCH_INDEX=$TORCH_INDEX"} \
    --tag "$image" .
docker push "$image"
echo "$image"
