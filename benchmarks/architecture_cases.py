"""The models that `architectures.py` checks: every family of timm, and models of other libraries in small configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xaieval.inference.tasks import Classification, Detection, Segmentation, Task

__all__ = ["CASES", "Case"]

SQUARE, WIDE, LARGE, BIG = (64, 64), (64, 96), (128, 192), (224, 224)


@dataclass(frozen=True)
class Case:
    """A model to check.

    Attributes:
        name: "SOURCE:NAME", with a source of `architecture_models.SOURCES`.
        size: Height and width of the images.
        arguments: Arguments of the model's constructor; for transformers, of its configuration.
        quick: Whether the tests check the model too.
        task: How its output is read.
        channels: Of the images.
    """

    name: str
    size: tuple[int, int] = WIDE
    arguments: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False
    task: Task = field(default_factory=Classification)
    channels: int = 3


def _quick(name: str, size: tuple[int, int] = WIDE, **arguments: Any) -> Case:
    return Case(name, size, arguments, quick=True)


def _case(name: str, size: tuple[int, int] = WIDE, **arguments: Any) -> Case:
    return Case(name, size, arguments)


def _detector(name: str, size: tuple[int, int] = LARGE, *, quick: bool = False, **arguments: Any) -> Case:
    return Case(name, size, arguments, quick, Detection())


def _segmenter(name: str, size: tuple[int, int] = WIDE, *, quick: bool = False, **arguments: Any) -> Case:
    return Case(name, size, arguments, quick, Segmentation(background=None))


NARROW = {"embed_dim": 48, "num_heads": 3}
# For transformers: one encoder with blocks of one size, and one of four stages.
PLAIN = {"hidden_size": 48, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 96, "num_labels": 5}
STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [2] * 4, "num_labels": 5}
HEADS = {"num_attention_heads": [1, 2, 2, 3]}
QUERIES = {"num_labels": 5, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "num_queries": 12}
QUERIES |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
OPEN = {"num_classes": 3, "min_size": 128, "weights_backbone": None, "box_score_thresh": 0.0, "box_detections_per_img": 20}
OPEN_ONE = {"num_classes": 3, "min_size": 128, "weights_backbone": None, "score_thresh": 0.0, "detections_per_img": 20}

CASES = [
    # convolutional networks, which take any size
    _quick("timm:resnet18"),
    _case("timm:resnet26d"),
    _case("timm:resnet50"),
    _case("timm:resnetv2_50"),
    _case("timm:resnest14d"),
    _case("timm:seresnext26d_32x4d"),
    _case("timm:res2net50_26w_4s"),
    _case("timm:wide_resnet50_2"),
    _quick("timm:mobilenetv2_050", LARGE),
    _quick("timm:mobilenetv3_small_050", LARGE),
    _case("timm:mobilenetv4_conv_small", LARGE),
    _quick("timm:efficientnet_b0", LARGE),
    _case("timm:tf_efficientnetv2_b0", LARGE),
    _case("timm:tinynet_e", LARGE),
    _case("timm:mnasnet_small", LARGE),
    _case("timm:ghostnet_050", LARGE),
    _case("timm:repvgg_a0", LARGE),
    _quick("timm:regnetx_002"),
    _case("timm:regnety_002"),
    _quick("timm:densenet121"),
    _quick("timm:convnext_atto"),
    _case("timm:convnextv2_atto"),
    _case("timm:inception_next_tiny"),
    _case("timm:inception_v3", (128, 160)),
    _case("timm:xception41", LARGE),
    _case("timm:dla34"),
    _quick("timm:hrnet_w18_small"),
    _case("timm:cspresnet50"),
    _case("timm:darknet53"),
    _case("timm:nf_resnet26"),
    _case("timm:lcnet_050", LARGE),
    _case("timm:rexnet_100", LARGE),
    _case("timm:edgenext_xx_small"),
    _case("timm:mambaout_femto"),
    # vision transformers
    _quick("timm:vit_tiny_patch16_224", img_size=WIDE),
    _quick("timm:vit_tiny_patch16_224", img_size=WIDE, global_pool="avg", class_token=False),
    _quick("timm:deit_tiny_distilled_patch16_224", img_size=WIDE),
    _case("timm:deit3_small_patch16_224", img_size=WIDE),
    _case("timm:vit_small_patch14_reg4_dinov2", (112, 168), img_size=(112, 168)),
    _case("timm:vit_relpos_small_patch16_224", SQUARE, img_size=64),
    _quick("timm:beit_base_patch16_224", img_size=WIDE, **NARROW),
    _quick("timm:eva02_tiny_patch14_224", (56, 84), img_size=(56, 84)),
    _quick("timm:cait_xxs24_224", SQUARE, img_size=64),
    _quick("timm:xcit_nano_12_p16_224", WIDE, img_size=WIDE),
    _case("timm:crossvit_9_240", (240, 240)),
    _case("timm:tnt_s_legacy_patch16_224", BIG),
    _case("timm:volo_d1_224", BIG),
    _case("timm:pit_ti_224", BIG),
    _case("timm:convit_tiny", BIG),
    _case("timm:samvit_base_patch16_224", BIG, depth=4, global_attn_indexes=(1, 3), **NARROW),
    _quick("timm:vit_tiny_r_s16_p8_224", SQUARE, img_size=64),
    # windows, pyramids, hybrids, mixers
    _quick("timm:swin_tiny_patch4_window7_224", (64, 128), img_size=(64, 128), window_size=2),
    _quick("timm:swinv2_tiny_window8_256", (64, 128), img_size=(64, 128), window_size=2),
    _case("timm:swin_s3_tiny_224", BIG),
    _quick("timm:pvt_v2_b0"),
    _case("timm:twins_svt_small", (128, 128), img_size=128),
    _quick("timm:coat_lite_tiny", SQUARE, img_size=64),
    _case("timm:coat_tiny", SQUARE, img_size=64),
    _quick("timm:levit_128s", BIG),
    _quick("timm:mobilevit_xxs", (64, 128)),
    _case("timm:mobilevitv2_050", LARGE),
    _quick("timm:efficientformer_l1", BIG),
    _case("timm:efficientformerv2_s0", BIG),
    _case("timm:efficientvit_b0", LARGE),
    _case("timm:efficientvit_m0", BIG),
    _quick("timm:maxvit_rmlp_pico_rw_256", (128, 128), img_size=128),
    _case("timm:coatnet_nano_rw_224", BIG),
    _case("timm:poolformer_s12"),
    _case("timm:caformer_s18"),
    _case("timm:fastvit_t8"),
    _case("timm:repvit_m1"),
    _case("timm:mvitv2_tiny", BIG),
    _case("timm:nest_tiny", BIG),
    _case("timm:gcvit_xxtiny", BIG),
    _case("timm:davit_tiny", (64, 128)),
    _case("timm:hiera_tiny_224", BIG),
    _case("timm:tiny_vit_5m_224", BIG),
    _case("timm:focalnet_tiny_srf"),
    _quick("timm:mixer_s32_224", (128, 128), img_size=128),
    _case("timm:resmlp_12_224", BIG),
    _case("timm:gmlp_ti16_224", BIG),
    # backbones that return their stages
    _quick("features:resnet18"),
    _quick("features:convnext_atto"),
    _case("features:swin_tiny_patch4_window7_224", (64, 128), img_size=(64, 128), window_size=2),
    _case("features:vit_tiny_patch16_224", WIDE, img_size=WIDE),
    # torchvision
    _quick("torchvision:resnet18"),
    _quick("torchvision:mobilenet_v2", LARGE),
    _case("torchvision:mobilenet_v3_small", LARGE),
    _case("torchvision:efficientnet_b0", LARGE),
    _case("torchvision:regnet_y_400mf"),
    _case("torchvision:densenet121"),
    _case("torchvision:convnext_tiny"),
    _case("torchvision:shufflenet_v2_x0_5", LARGE),
    _quick("torchvision:squeezenet1_1"),
    _case("torchvision:mnasnet0_5", LARGE),
    _case("torchvision:googlenet", (128, 160), init_weights=False),
    _case("torchvision:alexnet", (128, 160)),
    _quick("torchvision:vgg11", init_weights=False),
    _case("torchvision:vit_b_16", SQUARE, image_size=64),
    _case("torchvision:swin_t", (64, 128)),
    _case("torchvision:swin_v2_t", (64, 128)),
    _case("torchvision:maxvit_t", BIG, input_size=(224, 224)),
    # the other families of timm
    _case("timm:halonet26t", (256, 256)),
    _case("timm:botnet26t_256", (256, 256)),
    _case("timm:convmixer_768_32", (126, 189)),
    _case("timm:cpubone_nano", LARGE),
    _case("timm:csatv2", (256, 256)),
    _case("timm:cspnext_tiny", LARGE),
    _case("timm:dpn48b"),
    _case("timm:efficientvim_m1", BIG),
    _case("timm:fasternet_t0"),
    _case("timm:hardcorenas_a", LARGE),
    _case("timm:hgnetv2_b0"),
    _case("timm:sam2_hiera_tiny", (128, 128)),
    _case("timm:iformer_t", BIG),
    _case("timm:inception_resnet_v2", (128, 160)),
    _case("timm:inception_v4", (192, 256)),
    _case("timm:lcnetv2_small", LARGE),
    _case("timm:lowformer_b0", LARGE),
    _case("timm:mobilenetv5_base", LARGE),
    _case("timm:naflexvit_base_patch16_gap", WIDE, depth=6, **NARROW),
    _case("timm:deepseek_vit_412m", (112, 168), img_size=(112, 168), depth=6, **NARROW),
    _case("timm:gemma4_vit_167m", SQUARE, depth=6, **NARROW),
    _case("timm:qwen3_vit_88m", SQUARE, depth=6, **NARROW),
    _case("timm:nasnetalarge", (128, 160)),
    _case("timm:pnasnet5large", (128, 160)),
    _case("timm:nextvit_small"),
    _case("timm:rdnet_tiny"),
    _case("timm:repghostnet_050", LARGE),
    _case("timm:selecsls42", LARGE),
    _case("timm:legacy_seresnet18"),
    _case("timm:sequencer2d_s", BIG),
    _case("timm:shvit_s1", BIG),
    _case("timm:skresnet18"),
    _case("timm:starnet_s050"),
    _case("timm:swiftformer_xs", BIG),
    _case("timm:swinv2_cr_tiny_224", (64, 128), img_size=(64, 128), window_size=2),
    _case("timm:tresnet_m"),
    _case("timm:vgg11_bn"),
    _case("timm:visformer_tiny", BIG),
    _case("timm:vitamin_small_224", BIG),
    _case("timm:ese_vovnet19b_slim"),
    _case("timm:legacy_xception", (128, 160)),
    # transformers, with small configurations
    _case("transformers:ViTForImageClassification", SQUARE, image_size=64, **PLAIN),
    _case("transformers:DeiTForImageClassification", SQUARE, image_size=64, **PLAIN),
    _case("transformers:BeitForImageClassification", SQUARE, image_size=64, **PLAIN),
    _case("transformers:Dinov2ForImageClassification", SQUARE, image_size=64, patch_size=16, **PLAIN),
    _case("transformers:Dinov2WithRegistersForImageClassification", SQUARE, image_size=64, patch_size=16, **PLAIN),
    _case("transformers:ViTMSNForImageClassification", SQUARE, image_size=64, **PLAIN),
    _case("transformers:IJepaForImageClassification", SQUARE, image_size=64, patch_size=16, **PLAIN),
    _case("transformers:SwinForImageClassification", (64, 128), image_size=64, embed_dim=24, depths=[1] * 4, window_size=2),
    _case("transformers:Swinv2ForImageClassification", (64, 128), image_size=64, embed_dim=24, depths=[1] * 4, window_size=2),
    _case("transformers:ConvNextForImageClassification", **STAGES),
    _case("transformers:ResNetForImageClassification", embedding_size=16, **STAGES),
    _case("transformers:RegNetForImageClassification", embedding_size=16, groups_width=8, **STAGES),
    _case("transformers:SegformerForImageClassification", **STAGES | HEADS),
    _quick("transformers:PoolFormerForImageClassification", **STAGES),
    _case("transformers:PvtForImageClassification", SQUARE, image_size=64, **STAGES | HEADS),
    _case("transformers:FocalNetForImageClassification", SQUARE, image_size=64, embed_dim=24, depths=[1] * 4, num_labels=5),
    _case(
        "transformers:BitForImageClassification",
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1] * 4,
        num_groups=8,
    ),
    _case("transformers:MobileNetV2ForImageClassification", LARGE, num_labels=5),
    _case("transformers:MobileViTForImageClassification", LARGE, num_labels=5, initializer_range=0.1),
    _case("transformers:EfficientNetForImageClassification", LARGE, num_labels=5),
    _case("transformers:HGNetV2ForImageClassification", LARGE, num_labels=5),
    _case("transformers:LevitForImageClassification", BIG, num_labels=5),
    _case("transformers:CvtForImageClassification", embed_dim=[16, 24, 32], num_heads=[1, 2, 2], depth=[1, 2, 4], num_labels=5),
    _case("transformers:HieraForImageClassification", BIG, embed_dim=24, num_labels=5),
    # detectors
    _detector("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", **OPEN),
    _detector("torchvision:fasterrcnn_resnet50_fpn", **OPEN),
    _detector("torchvision:fasterrcnn_resnet50_fpn_v2", rpn_post_nms_top_n_test=50, **OPEN),
    _detector("torchvision:maskrcnn_resnet50_fpn", rpn_post_nms_top_n_test=50, **OPEN),
    _detector("torchvision:retinanet_resnet50_fpn", **OPEN_ONE),
    _detector("torchvision:fcos_resnet50_fpn", **OPEN_ONE),
    _detector("torchvision:ssd300_vgg16", (300, 300), num_classes=3, weights_backbone=None, score_thresh=0.0),
    _detector("torchvision:ssdlite320_mobilenet_v3_large", (320, 320), num_classes=3, weights_backbone=None, score_thresh=0.0),
    _detector("transformers:DetrForObjectDetection", backbone_config="resnet", **QUERIES),
    _detector("transformers:ConditionalDetrForObjectDetection", backbone_config="resnet", **QUERIES),
    _detector("transformers:DabDetrForObjectDetection", backbone_config="resnet", **QUERIES),
    _detector("transformers:DeformableDetrForObjectDetection", backbone_config="resnet", **QUERIES),
    _detector("transformers:YolosForObjectDetection", WIDE, quick=True, image_size=WIDE, num_detection_tokens=8, **PLAIN),
    _detector("transformers:RTDetrForObjectDetection", num_labels=5, num_queries=12, decoder_layers=2),
    _detector("transformers:RTDetrV2ForObjectDetection", num_labels=5, num_queries=12, decoder_layers=2),
    _detector("transformers:DFineForObjectDetection", num_labels=5, num_queries=12, decoder_layers=2),
    # whose neck has strides of 8, 16 and 32
    _detector("ultralytics:yolov5n", conf=0.0),
    _detector("ultralytics:yolov8n", quick=True, conf=0.0),
    _detector("ultralytics:yolov9t", conf=0.0),
    _detector("ultralytics:yolov10n", conf=0.0),
    _detector("ultralytics:yolo11n", conf=0.0),
    _detector("ultralytics:yolo12n", conf=0.0),
    _detector("ultralytics:yolo26n", conf=0.0),
    _detector("ultralytics:yolo11n-seg", conf=0.0),
    # segmentation networks
    _segmenter("torchvision:fcn_resnet50", weights_backbone=None, num_classes=5),
    _segmenter("torchvision:deeplabv3_mobilenet_v3_large", LARGE, weights_backbone=None, num_classes=5),
    _segmenter("torchvision:lraspp_mobilenet_v3_large", LARGE, weights_backbone=None, num_classes=5),
    _segmenter("smp:Unet", encoder_name="resnet18", classes=5),
    _segmenter("smp:UnetPlusPlus", encoder_name="resnet18", classes=5),
    _segmenter("smp:MAnet", encoder_name="resnet18", classes=5),
    _segmenter("smp:Linknet", quick=True, encoder_name="resnet18", classes=5),
    _segmenter("smp:FPN", encoder_name="resnet18", classes=5),
    _segmenter("smp:PSPNet", encoder_name="resnet18", classes=5),
    _segmenter("smp:PAN", LARGE, encoder_name="resnet18", classes=5),
    _segmenter("smp:DeepLabV3", encoder_name="resnet18", classes=5),
    _segmenter("smp:DeepLabV3Plus", LARGE, encoder_name="mobilenet_v2", classes=5),
    _segmenter("smp:UPerNet", encoder_name="resnet18", classes=5),
    _segmenter("smp:Segformer", encoder_name="mit_b0", classes=5),
    _segmenter("transformers:SegformerForSemanticSegmentation", decoder_hidden_size=16, **STAGES | HEADS),
    _segmenter("transformers:UperNetForSemanticSegmentation", backbone_config="swin", num_labels=5, hidden_size=24),
    _segmenter("transformers:BeitForSemanticSegmentation", SQUARE, image_size=64, out_indices=[1, 2, 4, 6], **PLAIN),
    _segmenter("transformers:MobileViTForSemanticSegmentation", LARGE, num_labels=5, initializer_range=0.1),
    # others
    _case("monai:DenseNet121", spatial_dims=2, in_channels=3, out_channels=5),
    _case("monai:SEResNet50", spatial_dims=2, in_channels=3, num_classes=5),
    _case("monai:EfficientNetBN", LARGE, model_name="efficientnet-b0", spatial_dims=2, pretrained=False, num_classes=5),
    _segmenter("monai:UNet", spatial_dims=2, in_channels=3, out_channels=5, channels=(8, 16, 32, 64), strides=(2, 2, 2)),
    _segmenter("monai:AttentionUnet", spatial_dims=2, in_channels=3, out_channels=5, channels=(8, 16, 32), strides=(2, 2)),
    _segmenter("monai:SegResNet", spatial_dims=2, in_channels=3, out_channels=5),
    _segmenter("monai:SwinUNETR", SQUARE, spatial_dims=2, in_channels=3, out_channels=5, feature_size=12),
    _case("open_clip:RN50", BIG),
    _case("open_clip:ViT-B-32", BIG),
    Case("torchgeo:resnet18", arguments={"in_chans": 13}, channels=13),
    _segmenter("torchgeo:FCN", in_channels=3, classes=5, num_filters=16),
    _segmenter("torchgeo:FarSeg", (192, 288), backbone="resnet18", classes=5, backbone_pretrained=False),
]
