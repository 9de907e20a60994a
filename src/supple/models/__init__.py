"""The small reference networks of the protocols and tests: MLP, ConvNet, ResNet, GPT and a denoising
U-Net. Plain modules without any knowledge of the rest of the library.
"""

from supple.models.convnet import ConvNet
from supple.models.gpt import GPT
from supple.models.mlp import MLP, he_uniform_
from supple.models.resnet import ResNet, resnet8, resnet18
from supple.models.unet import UNet

__all__ = ["GPT", "MLP", "ConvNet", "ResNet", "UNet", "he_uniform_", "resnet8", "resnet18"]
