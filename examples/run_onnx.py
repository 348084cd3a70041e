"""Label images with an exported model, without segadapt: python examples/run_onnx.py model.onnx photo.jpg labels.png"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, photo, out = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}

image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")  # upright
height, width = about["input_size"] or (image.height, image.width)
pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
(labels,) = session.run(["labels"], {"images": pixels[None]})

picture = Image.fromarray(labels[0]).resize(image.size, Image.Resampling.NEAREST).convert("P")
picture.putpalette([value for colour in about["colours"] for value in colour])
picture.save(out)
print({name: float((labels == number).mean().round(3)) for number, name in enumerate(about["classes"])})
