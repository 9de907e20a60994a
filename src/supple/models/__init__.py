"""The small reference networks of the protocols and tests: MLP, ConvNet, ResNet, GPT and a denoising
U-Net. Plain modules without any knowledge of the rest of the library.
"""
