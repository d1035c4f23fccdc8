"""The pretrained networks by name: a backbone is added by one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from pipeline.networks.backbones.backbone import Backbone
from pipeline.networks.backbones.efficientnet_lite import LITE0, LITE1, LITE2
from pipeline.networks.backbones.keras_applications import (
    Application,
    Blocks,
    convolutional,
    convolutional_after,
    fully_connected,
    normalized,
)
from pipeline.networks.backbones.scaling import CENTERED_BGR, SIGNED, SIGNED_128, STANDARDIZED
from pipeline.networks.backbones.weights import KerasFile


def _file(path: str, checksum: str | None, *, cached_as: str | None = None) -> KerasFile:
    """Return an official file by its path at Keras' storage, with the checksum that Keras has in its source."""
    return KerasFile(f"https://storage.googleapis.com/tensorflow/keras-applications/{path}", checksum, cached_as)


def _old_file(path: str, checksum: str) -> KerasFile:
    return KerasFile(f"https://storage.googleapis.com/keras-applications/{path}", checksum)


# What the networks of one family share. Sizes and features: https://keras.io/api/applications.
_vgg = partial(
    Application,
    input_size=224,
    feature_width=512,
    scaling=CENTERED_BGR,
    blocks=Blocks(r"(block\d)_.*"),
    top=fully_connected,
    fixed_top=True,
)
_resnet = partial(
    Application,
    module="resnet",
    input_size=224,
    feature_width=2048,
    scaling=CENTERED_BGR,
    blocks=Blocks(r"(conv\d_block\d+)_.*"),
)
_resnet_v2 = partial(_resnet, module="resnet_v2", scaling=SIGNED)
_mobilenet_v3 = partial(
    Application,
    module="mobilenet_v3",
    input_size=224,
    scaling=SIGNED,
    scaled_inside="rescaling",
    blocks=Blocks(r"(expanded_conv(?:_\d+)?)_\D.*"),
)
_densenet = partial(
    Application,
    module="densenet",
    input_size=224,
    scaling=STANDARDIZED,
    blocks=Blocks(r"(conv[2-5])_block.*"),  # the dense blocks, each with the transition after it
)
_nasnet = partial(
    Application,
    module="nasnet",
    scaling=SIGNED,
    blocks=Blocks(r"stem_bn1|(normal_)concat(_\d+)|(reduction_)concat(_\w+)", by="end"),  # the cells
)
_efficientnet = partial(
    Application,
    module="efficientnet",
    scaling=STANDARDIZED,
    scaled_inside="normalization",
    blocks=Blocks(r"(block\d[a-z])_.*"),
)
_efficientnet_v2 = partial(_efficientnet, module="efficientnet_v2", feature_width=1280)
_convnext = partial(
    Application,
    module="convnext",
    input_size=224,
    scaling=STANDARDIZED,
    blocks=Blocks(r".*?_(?:(downsampling_block_\d)|(stage_\d_block_\d+)_.*)"),
    top=normalized,
)

_ENTRIES: tuple[Backbone, ...] = (
    LITE0,
    LITE1,
    LITE2,
    _vgg(
        name="vgg16",
        constructor="VGG16",
        module="vgg16",
        imagenet=_file("vgg16/vgg16_weights_tf_dim_ordering_tf_kernels.h5", "64373286793e3c8b2b4e3219cbf3544b"),
    ),
    _vgg(
        name="vgg19",
        constructor="VGG19",
        module="vgg19",
        imagenet=_file("vgg19/vgg19_weights_tf_dim_ordering_tf_kernels.h5", "cbe5617147190e668d6c5d5026f83318"),
    ),
    _resnet(
        name="resnet50",
        constructor="ResNet50",
        imagenet=_file("resnet/resnet50_weights_tf_dim_ordering_tf_kernels.h5", "2cb95161c43110f7111970584f804107"),
    ),
    _resnet(
        name="resnet101",
        constructor="ResNet101",
        imagenet=_file("resnet/resnet101_weights_tf_dim_ordering_tf_kernels.h5", "f1aeb4b969a6efcfb50fad2f0c20cfc5"),
    ),
    _resnet(
        name="resnet152",
        constructor="ResNet152",
        imagenet=_file("resnet/resnet152_weights_tf_dim_ordering_tf_kernels.h5", "100835be76be38e30d865e96f2aaae62"),
    ),
    _resnet_v2(
        name="resnet50_v2",
        constructor="ResNet50V2",
        imagenet=_file("resnet/resnet50v2_weights_tf_dim_ordering_tf_kernels.h5", "3ef43a0b657b3be2300d5770ece849e0"),
    ),
    _resnet_v2(
        name="resnet101_v2",
        constructor="ResNet101V2",
        imagenet=_file("resnet/resnet101v2_weights_tf_dim_ordering_tf_kernels.h5", "6343647c601c52e1368623803854d971"),
    ),
    _resnet_v2(
        name="resnet152_v2",
        constructor="ResNet152V2",
        imagenet=_file("resnet/resnet152v2_weights_tf_dim_ordering_tf_kernels.h5", "a49b44d1979771252814e80f8ec446f9"),
    ),
    Application(
        name="inception_v3",
        constructor="InceptionV3",
        module="inception_v3",
        input_size=299,
        smallest_size=75,
        feature_width=2048,
        scaling=SIGNED,
        blocks=Blocks(r"max_pooling2d_1|(mixed\d+)", by="end"),
        imagenet=_file(
            "inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels.h5",
            "9a0d58056eeedaa3f26cb7ebd46da564",
        ),
    ),
    Application(
        name="inception_resnet_v2",
        constructor="InceptionResNetV2",
        module="inception_resnet_v2",
        input_size=299,
        smallest_size=75,
        feature_width=1536,
        scaling=SIGNED,
        # The last residual block has no activation: what it adds, which holds no weights, is left to the one after it.
        blocks=Blocks(r"max_pooling2d_1|(mixed_\d[a-z])|(block\d+_\d+)_ac|(block8_10)_conv|(conv_7b)_ac", by="end"),
        imagenet=_file(
            "inception_resnet_v2/inception_resnet_v2_weights_tf_dim_ordering_tf_kernels.h5",
            "e693bd0210a403b3192acc6073ad2e96",
        ),
    ),
    Application(
        name="xception",
        constructor="Xception",
        module="xception",
        input_size=299,
        smallest_size=71,
        feature_width=2048,
        scaling=SIGNED,
        blocks=Blocks(r"(block\d+)_.*"),
        imagenet=_file("xception/xception_weights_tf_dim_ordering_tf_kernels.h5", "0a58e3b7378bc2990ea3b43d5981f1f6"),
    ),
    Application(
        name="mobilenet",
        constructor="MobileNet",
        module="mobilenet",
        input_size=224,
        feature_width=1024,
        scaling=SIGNED,
        blocks=Blocks(r"(conv)_(?:pad|dw|pw)(_\d+).*"),
        top=convolutional,
        imagenet=_file("mobilenet/mobilenet_1_0_224_tf.h5", None),
    ),
    Application(
        name="mobilenet_v2",
        constructor="MobileNetV2",
        module="mobilenet_v2",
        input_size=224,
        feature_width=1280,
        scaling=SIGNED,
        blocks=Blocks(r"(expanded_conv|block_\d+)_.*"),
        imagenet=_file("mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5", None),
    ),
    _mobilenet_v3(
        name="mobilenet_v3_small",
        constructor="MobileNetV3Small",
        feature_width=576,
        top=convolutional_after(1024),
        imagenet=_file("mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float.h5", "8768d4c2e7dee89b9d02b2d03d65d862"),
    ),
    _mobilenet_v3(
        name="mobilenet_v3_large",
        constructor="MobileNetV3Large",
        feature_width=960,
        top=convolutional_after(1280),
        imagenet=_file("mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float.h5", "59e551e166be033d707958cf9e29a6a7"),
    ),
    _densenet(
        name="densenet121",
        constructor="DenseNet121",
        feature_width=1024,
        imagenet=_file(
            "densenet/densenet121_weights_tf_dim_ordering_tf_kernels.h5",
            "9d60b8095a5708f2dcce2bca79d332c7",
        ),
    ),
    _densenet(
        name="densenet169",
        constructor="DenseNet169",
        feature_width=1664,
        imagenet=_file(
            "densenet/densenet169_weights_tf_dim_ordering_tf_kernels.h5",
            "d699b8f76981ab1b30698df4c175e90b",
        ),
    ),
    _densenet(
        name="densenet201",
        constructor="DenseNet201",
        feature_width=1920,
        imagenet=_file(
            "densenet/densenet201_weights_tf_dim_ordering_tf_kernels.h5",
            "1ceb130c1ea1b78c3bf6114dbdfd8807",
        ),
    ),
    _nasnet(
        name="nasnet_mobile",
        constructor="NASNetMobile",
        input_size=224,
        feature_width=1056,
        imagenet=_file("nasnet/NASNet-mobile.h5", "020fb642bf7360b370c678b08e0adf61", cached_as="nasnet_mobile.h5"),
    ),
    _nasnet(
        name="nasnet_large",
        constructor="NASNetLarge",
        input_size=331,
        feature_width=4032,
        imagenet=_file("nasnet/NASNet-large.h5", "11577c9a518f0070763c2b964a382f17", cached_as="nasnet_large.h5"),
    ),
    _efficientnet(
        name="efficientnet_b0",
        constructor="EfficientNetB0",
        input_size=224,
        feature_width=1280,
        imagenet=_old_file("efficientnetb0.h5", "902e53a9f72be733fc0bcb005b3ebbac"),
    ),
    _efficientnet(
        name="efficientnet_b1",
        constructor="EfficientNetB1",
        input_size=240,
        feature_width=1280,
        imagenet=_old_file("efficientnetb1.h5", "1d254153d4ab51201f1646940f018540"),
    ),
    _efficientnet(
        name="efficientnet_b2",
        constructor="EfficientNetB2",
        input_size=260,
        feature_width=1408,
        imagenet=_old_file("efficientnetb2.h5", "b15cce36ff4dcbd00b6dd88e7857a6ad"),
    ),
    _efficientnet(
        name="efficientnet_b3",
        constructor="EfficientNetB3",
        input_size=300,
        feature_width=1536,
        imagenet=_old_file("efficientnetb3.h5", "ffd1fdc53d0ce67064dc6a9c7960ede0"),
    ),
    _efficientnet(
        name="efficientnet_b4",
        constructor="EfficientNetB4",
        input_size=380,
        feature_width=1792,
        imagenet=_old_file("efficientnetb4.h5", "18c95ad55216b8f92d7e70b3a046e2fc"),
    ),
    _efficientnet(
        name="efficientnet_b5",
        constructor="EfficientNetB5",
        input_size=456,
        feature_width=2048,
        imagenet=_old_file("efficientnetb5.h5", "ace28f2a6363774853a83a0b21b9421a"),
    ),
    _efficientnet(
        name="efficientnet_b6",
        constructor="EfficientNetB6",
        input_size=528,
        feature_width=2304,
        imagenet=_old_file("efficientnetb6.h5", "165f6e37dce68623721b423839de8be5"),
    ),
    _efficientnet(
        name="efficientnet_b7",
        constructor="EfficientNetB7",
        input_size=600,
        feature_width=2560,
        imagenet=_old_file("efficientnetb7.h5", "8c03f828fec3ef71311cd463b6759d99"),
    ),
    _efficientnet_v2(
        name="efficientnet_v2_b0",
        constructor="EfficientNetV2B0",
        input_size=224,
        imagenet=_file("efficientnet_v2/efficientnetv2-b0.h5", "21ecbf6da12460d5c40bb2f29ceb2188"),
    ),
    _efficientnet_v2(
        name="efficientnet_v2_b1",
        constructor="EfficientNetV2B1",
        input_size=240,
        imagenet=_file("efficientnet_v2/efficientnetv2-b1.h5", "069f0534ff22adf035c89e2d9547a9dc"),
    ),
    _efficientnet_v2(
        name="efficientnet_v2_b2",
        constructor="EfficientNetV2B2",
        input_size=260,
        feature_width=1408,
        imagenet=_file("efficientnet_v2/efficientnetv2-b2.h5", "424e49f28180edbde1e94797771950a7"),
    ),
    _efficientnet_v2(
        name="efficientnet_v2_b3",
        constructor="EfficientNetV2B3",
        input_size=300,
        feature_width=1536,
        imagenet=_file("efficientnet_v2/efficientnetv2-b3.h5", "1f1fc43bd98a6e4fd8fdfd551e02c7a0"),
    ),
    _efficientnet_v2(
        name="efficientnet_v2_s",
        constructor="EfficientNetV2S",
        input_size=384,
        scaling=SIGNED_128,
        scaled_inside="rescaling",
        imagenet=_file("efficientnet_v2/efficientnetv2-s.h5", "e1d88a8495beba45748fedd0cecbe016"),
    ),
    _efficientnet_v2(
        name="efficientnet_v2_m",
        constructor="EfficientNetV2M",
        input_size=480,
        scaling=SIGNED_128,
        scaled_inside="rescaling",
        imagenet=_file("efficientnet_v2/efficientnetv2-m.h5", "a3bf6aa3276309f4fc6a34aa114c95cd"),
    ),
    _efficientnet_v2(
        name="efficientnet_v2_l",
        constructor="EfficientNetV2L",
        input_size=480,
        scaling=SIGNED_128,
        scaled_inside="rescaling",
        imagenet=_file("efficientnet_v2/efficientnetv2-l.h5", "27e6d408b53c7ebc868fefa357689935"),
    ),
    _convnext(
        name="convnext_tiny",
        constructor="ConvNeXtTiny",
        feature_width=768,
        scaled_inside="convnext_tiny_prestem_normalization",
        imagenet=_file("convnext/convnext_tiny.h5", "8ae6e78ce2933352b1ef4008e6dd2f17bc40771563877d156bc6426c7cf503ff"),
    ),
    _convnext(
        name="convnext_small",
        constructor="ConvNeXtSmall",
        feature_width=768,
        scaled_inside="convnext_small_prestem_normalization",
        imagenet=_file(
            "convnext/convnext_small.h5",
            "ce1277d8f1ee5a0ef0e171469089c18f5233860ceaf9b168049cb9263fd7483c",
        ),
    ),
    _convnext(
        name="convnext_base",
        constructor="ConvNeXtBase",
        feature_width=1024,
        scaled_inside="convnext_base_prestem_normalization",
        imagenet=_file("convnext/convnext_base.h5", "52cbb006d3dadd03f6e095a8ca1aca47aecdd75acb4bc74bce1f5c695d0086e6"),
    ),
    _convnext(
        name="convnext_large",
        constructor="ConvNeXtLarge",
        feature_width=1536,
        scaled_inside="convnext_large_prestem_normalization",
        imagenet=_file(
            "convnext/convnext_large.h5",
            "070c5ed9ed289581e477741d3b34beffa920db8cf590899d6d2c67fba2a198a6",
        ),
    ),
    _convnext(
        name="convnext_xlarge",
        constructor="ConvNeXtXLarge",
        feature_width=2048,
        scaled_inside="convnext_xlarge_prestem_normalization",
        imagenet=_file(
            "convnext/convnext_xlarge.h5",
            "c1f5ccab661354fc3a79a10fa99af82f0fbf10ec65cb894a3ae0815f17a889ee",
        ),
    ),
)

BACKBONES: Mapping[str, Backbone] = {entry.name: entry for entry in _ENTRIES}
