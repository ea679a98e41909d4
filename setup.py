"""Packaging: the public package `duoflow` over four flat internal ones, one distribution and command of that name."""

from pathlib import Path

from setuptools import find_packages, setup

# Lower bounds follow known vulnerabilities (torch, transformers, pillow) and the oldest versions the tests ran with.
# docs/dependencies.md gives the reason for each.
REQUIREMENTS = [
    "deepspeed>=0.19.8",
    "fsspec>=2025.3",
    "msgspec>=0.20",
    "numpy>=1.26",
    "peft>=0.18",
    "pillow>=12",
    "protobuf>=6.31.1",
    "pydantic>=2.10",
    "pyyaml>=6",
    "safetensors>=0.6",
    "scipy>=1.13",
    "sentencepiece>=0.2.1",
    "tensorboard>=2.18",
    "timm>=1.0.31",
    "torch>=2.10",
    "tqdm>=4.66",
    "transformers>=5.3",
    "webdataset>=1.0",
]

setup(
    name="duoflow",
    version="0.1.0",
    description="Train vision-language fusion encoders on GQA with WebDataset shards and DeepSpeed ZeRO",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["duoflow*", "shards*", "model*", "trainer*", "launch*"]), "ds_configs"],
    package_data={"duoflow": ["py.typed"], "launch": ["slurm.sbatch"], "ds_configs": ["*.json"]},
    install_requires=REQUIREMENTS,
    extras_require={
        "dev": [
            "aiohttp>=3.13",
            "hypothesis>=6.100",
            "mkdocs-material>=9.6",
            "moto[server]>=5",
            "num2words>=0.5",
            "playwright>=1.55",
            "pytest>=8",
            "pytest-xdist>=3.7",
            "ruff>=0.14",
            "s3fs>=2025.3",
        ],
        "docs": ["mkdocs-material>=9.6"],
        "gcs": ["gcsfs>=2025.3"],
        "hf": ["huggingface_hub>=1.0"],
        "http": ["aiohttp>=3.13"],
        "mlflow": ["mlflow>=3"],
        "onnx": ["onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.5"],
        "qlora": ["bitsandbytes>=0.49"],
        "ray": ["ray>=2.49"],
        "s3": ["s3fs>=2025.3"],
        "trl": ["trl>=1.16", "accelerate>=1.15", "datasets>=5.2"],
        "wandb": ["wandb>=0.22"],
    },
    entry_points={"console_scripts": ["duoflow=duoflow.__main__:main"]},
)
