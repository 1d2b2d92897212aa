"""How light a face is and what tone its skin has, so that errors can be looked at by both. Measured in the pictures, so lamps and cameras
are in it: dark means dark in the picture.

Skin tone is the individual typology angle, atan((L* - 50) / b*) in degrees, of CIELAB under D65 (Chardon, Cretois and Hourseau, Skin colour
typology and suntanning pathways, 1991); its six classes are those of Del Bino and Bernerd (Variations in skin colour and the biological
consequences of ultraviolet radiation exposure, 2013).
"""

import cv2
import numpy as np
import torch

SKIN_TONES = (("very light", 55.0), ("light", 41.0), ("intermediate", 28.0), ("tan", 10.0), ("brown", -30.0), ("dark", -90.0))
"""Classes with the smallest angle (exclusive) of each, in degrees, from light to dark."""


def appearance(images: torch.Tensor) -> np.ndarray:
    """float64 [N,2]: lightness L* (0 to 100) and skin tone in degrees, medians over the middle third of pictures, float32 [N,3,S,S], RGB
    in 0..1.

    The middle third of a crop with margin is nose and cheeks. Where b* is not positive, which skin is not under white light, the angle
    is 90 or -90 by the sign of L* - 50.
    """
    side = images.shape[-1]
    middle = images[:, :, side // 3 : side - side // 3, side // 3 : side - side // 3].clamp(0, 1).permute(0, 2, 3, 1).contiguous().numpy()
    found = []
    for picture in middle:
        lightness, _, blue_to_yellow = np.median(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB).reshape(-1, 3), axis=0).astype(np.float64)
        found.append((lightness, np.degrees(np.arctan2(lightness - 50, max(blue_to_yellow, 1e-9)))))
    return np.array(found).reshape(-1, 2)


def skin_tone_class(angle: float) -> str:
    """The class of an angle in degrees."""
    return next((name for name, above in SKIN_TONES if angle > above), SKIN_TONES[-1][0])
