"""The painter: draws the head of an identity with a given mouth, blink and light.

A head is a height field (an ellipsoid with a nose, brows, eye sockets, lips and chin on it) shaded by Lambert's law, painted once per
lighting on a canvas at about twice the size it will have in a frame; only eyes and mouth are drawn anew in each frame.
"""

import cv2
import numpy as np
import numpy.typing as npt

from dfdc_ray.demo.identity import CANVAS_HEIGHT, CANVAS_WIDTH, CENTRE, Array, Colour, Identity, Image, locate, smooth_noise

SHIFT = 4  # fractional bits of OpenCV's polygon coordinates


class HeadPainter:
    """Draws one identity's head, turned by `turn` radians and lit from `light` (x, y, z towards the lamp) or `light_2`."""

    def __init__(self, identity: Identity, *, turn: float, lights: tuple[npt.ArrayLike, npt.ArrayLike]) -> None:
        self.identity = identity
        self.turn = turn
        y, x = np.mgrid[:CANVAS_HEIGHT, :CANVAS_WIDTH].astype(np.float32)
        self._u: Array = (x - CENTRE[0]) / np.float32(identity.half_width)
        self._v: Array = (y - CENTRE[1]) / np.float32(identity.half_height)
        rng = np.random.default_rng(identity.texture)
        albedo, height = self._skin(rng)
        layers = self._hair(rng)
        face = self._outline(self._u, self._v, 1.0)
        self._lit: list[tuple[Image, Array]] = []
        for light in lights:
            shade = _lambert(height, np.asarray(light, np.float32))
            self._lit.append((self._compose(albedo, face, shade, layers), shade))

    def paint(self, *, mouth: float, blink: float, gaze: float, light: float) -> Image:
        """The head with its mouth and eyes drawn in.

        mouth: opening 0-1; blink: 0 open, 1 closed; gaze: -1 left to 1 right; light: 0 for the first lamp, 1 for the second.
        Returns uint8 [CANVAS_HEIGHT, CANVAS_WIDTH, 4]: RGB premultiplied by alpha, and alpha.
        """
        image = np.empty_like(self._lit[0][0])
        cv2.addWeighted(self._lit[0][0], 1 - light, self._lit[1][0], light, 0, dst=image)
        for side in (-1, 1):
            self._draw_eye(image, side, blink=blink, gaze=gaze, light=light)
        self._draw_mouth(image, opening=mouth, light=light)
        return image

    # -- what stays the same in all frames

    def _point(self, u: float, v: float) -> tuple[float, float]:
        return locate(self.identity, self.turn, u, v)

    def _outline(self, u: Array, v: Array, size: float) -> Array:
        """Alpha of the face's outline."""
        return np.clip((1 - self._field(u / size, v / size)) * self.identity.half_width * size / 2 / 1.5 + 0.5, 0, 1)

    def _field(self, u: Array, v: Array) -> Array:
        """Below 1 inside the face, above 1 outside."""
        i = self.identity
        width = 1 - i.jaw * np.clip(v, 0, 1.2) ** 2
        return (np.abs(u) / width) ** i.squareness + np.abs(v) ** 2.3

    def _bump(self, u: float, v: float, width: float, height: float) -> Array:
        x = float(np.sin(np.arcsin(np.clip(u, -1, 1)) + self.turn))
        return np.exp(-(((self._u - x) / width) ** 2) - ((self._v - v) / height) ** 2)

    def _skin(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Albedo (RGB 0-255, float32 [H, W, 3]) and height field (pixels, float32 [H, W]) of the bare face."""
        i = self.identity
        shape = (CANVAS_HEIGHT, CANVAS_WIDTH)
        size = np.float32(i.half_width)
        height = 0.8 * size * np.sqrt(np.clip(1 - self._field(self._u, self._v), 0.02, 1))
        ridge = np.exp(-(((self._v - (i.nose_v - 0.16)) / 0.2) ** 2))
        x = np.float32(np.sin(self.turn * 1.3))
        height += size * i.nose_size * (0.1 * np.exp(-(((self._u - x) / (0.55 * i.nose_width)) ** 2)) * ridge)
        height += size * i.nose_size * 0.15 * self._bump(0.04 * self.turn, i.nose_v, 0.65 * i.nose_width, 0.07)
        for side in (-1, 1):
            height += size * i.nose_size * 0.045 * self._bump(side * 0.7 * i.nose_width, i.nose_v + 0.02, 0.06, 0.04)
            height -= size * 0.1 * self._bump(side * i.eye_u, i.eye_v, 0.24, 0.1)
            height += size * 0.05 * self._bump(side * i.eye_u, i.eye_v - i.brow_rise, 0.28, 0.06)
            height += size * 0.07 * self._bump(side * 0.52, 0.22, 0.2, 0.16)
        height += size * 0.07 * self._bump(0, 0.86, 0.2, 0.1)
        height += size * 0.05 * self._bump(0, i.mouth_v, i.mouth_width, 0.12)
        height -= size * 0.02 * self._bump(0, i.mouth_v + 0.17, 0.2, 0.04)
        height += 0.25 * smooth_noise(rng, shape, 2.2, 2.2)

        albedo = np.empty((*shape, 3), np.float32)
        albedo[:] = i.skin
        red = 0.5 * (self._bump(-0.55, 0.25, 0.25, 0.18) + self._bump(0.55, 0.25, 0.25, 0.18) + self._bump(0, i.nose_v, 0.2, 0.1))
        red += 0.15 * smooth_noise(rng, shape, 14, 14)
        albedo *= 1 + red[..., None] * np.array((0.03, -0.09, -0.07), np.float32)
        albedo *= 1 + 0.01 * i.blotches * (0.6 * smooth_noise(rng, shape, 1.2, 1.2) + smooth_noise(rng, shape, 5, 5))[..., None]
        dark = np.zeros(shape, np.uint8)
        for _ in range(i.freckles):
            u, v = rng.normal(0, 0.38), rng.normal(0.12, 0.2)
            radius, depth = int(rng.uniform(1.0, 2.4) * 2**SHIFT), int(rng.integers(20, 70))
            cv2.circle(dark, _fixed(self._point(u, v)), radius, depth, -1, cv2.LINE_AA, SHIFT)
        for line in range(int(3 * i.wrinkles)):
            v = -0.42 - 0.06 * line
            self._stroke(dark, [(u, v - 0.03 * u * u) for u in np.linspace(-0.35, 0.35, 9)], 1.2, 60 * i.wrinkles)
        for side in (-1, 1):  # folds from the nose to the mouth, and under the eyes
            fold = [(side * (0.26 + 0.14 * t), i.nose_v + 0.02 + 0.26 * t) for t in np.linspace(0, 1, 7)]
            self._stroke(dark, fold, 2.0, 25 + 60 * i.wrinkles)
            bag = [(side * i.eye_u + 0.2 * t, i.eye_v + 0.1 + 0.025 * (1 - t * t)) for t in np.linspace(-1, 1, 9)]
            self._stroke(dark, bag, 1.5, 20 + 50 * i.wrinkles)
            brow = [(side * (i.eye_u + 0.24 * t), i.eye_v - i.brow_rise + i.brow_slant * t + 0.035 * t * t) for t in np.linspace(-1, 1, 11)]
            self._brow(albedo, brow, rng)
            nostril = [(side * (0.55 * i.nose_width + 0.04 * t), i.nose_v + 0.065 - 0.01 * t) for t in (-1.0, 0.0, 1.0)]
            self._stroke(dark, nostril, 3.5, 130)
        soft = cv2.GaussianBlur(dark, (0, 0), 1.0).astype(np.float32) / 255
        albedo *= 1 - soft[..., None] * np.array((0.8, 0.9, 1.0), np.float32)
        if i.stubble > 0.15:
            below = np.clip((self._v - 0.32 - 0.35 * (1 - np.abs(self._u))) / 0.15 + 0.5 * np.abs(self._u), 0, 1)
            below *= 1 - 0.8 * self._bump(0, i.mouth_v, 0.75 * i.mouth_width, 0.1)
            grain = np.clip(0.5 + 0.5 * smooth_noise(rng, shape, 0.9, 1.8), 0, 1)
            cover = (0.75 * i.stubble * below * (0.45 + 0.55 * grain))[..., None]
            albedo = albedo * (1 - cover) + np.asarray(i.hair, np.float32) * cover
        return albedo.astype(np.float32), height.astype(np.float32)

    def _stroke(self, image: Image, points: list[tuple[float, float]], thickness: float, value: float) -> None:
        fixed = np.array([_fixed(self._point(u, v)) for u, v in points], np.int32)
        cv2.polylines(image, [fixed], False, min(255, int(value)), max(1, round(thickness)), cv2.LINE_AA, SHIFT)

    def _brow(self, albedo: Array, points: list[tuple[float, float]], rng: np.random.Generator) -> None:
        i = self.identity
        cover = np.zeros(albedo.shape[:2], np.uint8)
        for n, (u, v) in enumerate(points):
            for _ in range(14):  # single hairs, which lean outwards
                x, y = self._point(u + rng.uniform(-0.03, 0.03), v + rng.uniform(-1, 1) * i.brow_thickness * (1 - 0.35 * abs(n - 4) / 5))
                lean = np.sign(u) * rng.uniform(4, 9)
                cv2.line(cover, _fixed((x, y)), _fixed((x + lean, y - rng.uniform(0, 5))), 190, 1, cv2.LINE_AA, SHIFT)
        alpha = (cv2.GaussianBlur(cover, (0, 0), 0.8).astype(np.float32) / 255)[..., None]
        albedo[:] = albedo * (1 - alpha) + 0.8 * np.asarray(i.hair, np.float32) * alpha

    def _hair(self, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        """Alpha behind the head, alpha in front of it, and colour (float32 [H, W, 3]) of the hair."""
        i = self.identity
        u, v = self._u, self._v
        shape = u.shape
        curly, long = i.hair_style == "curly", i.hair_style == "long"
        strands = smooth_noise(rng, (shape[0], shape[1]), 3.0, 3.0) if curly else smooth_noise(rng, (shape[0], shape[1]), 1.3, 14.0)
        volume = {"bald": 0.0, "short": 0.05, "fringe": 0.1, "parted": 0.09, "long": 0.13, "curly": 0.22}[i.hair_style]
        edge = (0.05 if curly else 0.012) * strands
        cap = (np.abs(u) / (1.03 + volume)) ** 2.3 + (np.abs(v + 0.04) / (1.0 + 1.1 * volume)) ** 2.3 + edge
        inside = np.clip((1 - cap) * 40 + 0.5, 0, 1)
        lower = 1.25 if long else (0.25 if curly else 0.0)
        behind = np.where(v < 0, inside, 0.0)
        if long or curly:
            sides = np.clip((1.03 + volume + 0.06 * np.clip(v, 0, 1) - np.abs(u) + edge) * 30, 0, 1)
            behind = np.maximum(behind, np.where(v >= 0, sides, 0) * np.clip((lower - v + 0.1 * strands) * 8, 0, 1))
        line = i.hairline + 0.55 * np.abs(u) ** 4
        if i.hair_style == "fringe":
            line = i.hairline + 0.22 + 0.35 * np.abs(u) ** 4 + 0.03 * strands
        elif i.hair_style == "parted":
            line = i.hairline + 0.5 * np.abs(u - 0.25) ** 2.2
        line = line + 0.012 * strands
        front = inside * np.clip((line - v) * 16, 0, 1)
        if i.hair_style == "bald":
            behind, front = np.zeros_like(inside), 0.12 * inside * np.clip((line - v) * 3, 0, 1)
        sheen = np.exp(-(((v + 0.75 - 0.2 * u * u) / 0.16) ** 2))
        tint = np.clip(0.78 + 0.2 * strands + 0.35 * sheen - 0.3 * np.clip(np.abs(u) - 0.6, 0, 1), 0.25, 1.6)
        colour = tint[..., None] * (np.asarray(i.hair, np.float32) + 6)
        return behind.astype(np.float32), front.astype(np.float32), colour.astype(np.float32)

    def _compose(self, albedo: Array, face: Array, shade: Array, layers: tuple[Array, Array, Array]) -> Image:
        i = self.identity
        behind, front, hair = layers
        hair_light = (0.5 + 0.5 * cv2.GaussianBlur(shade, (0, 0), 12))[..., None]
        colour = hair * hair_light
        alpha = behind
        ears = np.zeros_like(face)
        for side in (-1, 1):
            distance = ((self._u - side * 1.0) / 0.11) ** 2 + ((self._v - i.eye_v - 0.12) / 0.19) ** 2
            ears = np.maximum(ears, np.clip((1 - distance) * 5, 0, 1) * (0.75 + 0.25 * np.clip(distance, 0, 1)))
        if i.hair_style in ("long", "curly"):
            ears = ears * 0
        ear_light = 0.62 + 0.2 * np.sign(self._u) * (shade[:, -CANVAS_WIDTH // 4 :].mean() - shade[:, : CANVAS_WIDTH // 4].mean())
        for cover, paint in (
            (ears, np.asarray(i.skin, np.float32) * np.array((0.95, 0.82, 0.8), np.float32) * ear_light[..., None]),
            (face, albedo * shade[..., None]),
            (front, hair * hair_light),
        ):
            colour = colour * (1 - cover[..., None]) + paint * cover[..., None]
            alpha = alpha + cover * (1 - alpha)
        image = np.dstack((np.clip(colour, 0, 255) * alpha[..., None], alpha * 255)).astype(np.uint8)
        return cv2.GaussianBlur(image, (0, 0), 0.7)  # type: ignore[return-value]

    # -- what moves

    def _shade(self, box: tuple[slice, slice], light: float) -> Array:
        return (1 - light) * self._lit[0][1][box] + light * self._lit[1][1][box]

    def _draw_eye(self, image: Image, side: int, *, blink: float, gaze: float, light: float) -> None:
        i = self.identity
        x, y = self._point(side * i.eye_u, i.eye_v)
        narrowing = float(np.cos(np.arcsin(side * i.eye_u) + self.turn))
        half = i.eye_width * i.half_width * max(0.5, narrowing) * 1.05
        tall = i.eye_height * i.half_height
        left, top, width, height = int(x - half - 8), int(y - tall - 14), int(2 * half + 16), int(2 * tall + 28)
        box = np.s_[top : top + height, left : left + width]
        t = np.linspace(-1, 1, 15)
        curve = np.clip(1 - np.abs(t) ** 2.2, 0, 1)
        slant = side * i.eye_slant * i.half_height * t
        upper = y - top - tall * curve * (1 - 1.75 * blink) + slant
        lower = y - top + 0.75 * tall * curve + slant
        xs = x - left + half * t
        mask = np.zeros((height, width), np.uint8)
        if blink < 0.9:
            outline = np.concatenate((np.column_stack((xs, np.minimum(upper, lower))), np.column_stack((xs, lower))[::-1]))
            cv2.fillPoly(mask, [_fixed_array(outline)], 255, cv2.LINE_AA, SHIFT)
        ball = np.full((height, width, 3), (226, 220, 216), np.uint8)
        pupil = (x - left + (0.3 * gaze + 0.6 * self.turn) * half, y - top - 0.08 * tall)
        radius = 1.08 * tall * 0.92
        for colour, size in ((0.55 * np.asarray(i.iris), 1.0), (np.asarray(i.iris), 0.86), (np.array((12, 10, 10)), 0.42)):
            cv2.circle(ball, _fixed(pupil), int(radius * size * 2**SHIFT), tuple(colour.tolist()), -1, cv2.LINE_AA, SHIFT)
        glint = (pupil[0] - 0.3 * radius, pupil[1] - 0.35 * radius)
        cv2.circle(ball, _fixed(glint), int(0.2 * radius * 2**SHIFT), (250, 250, 250), -1, cv2.LINE_AA, SHIFT)
        shade = self._shade(box, light)
        rows = (np.arange(height, dtype=np.float32) - (y - top)) / max(tall, 1)
        lid = np.clip(0.82 + 0.28 * rows, 0.5, 1.05)[:, None]  # the lid's shadow
        lit = ball * (0.35 + 0.65 * shade * lid)[..., None]
        cover = (mask.astype(np.float32) / 255)[..., None]
        rgb = image[box][..., :3]
        rgb[:] = np.clip(rgb * (1 - cover) + lit * cover, 0, 255).astype(np.uint8)
        patch = np.ascontiguousarray(rgb)
        lash = tuple(float(c) * 0.25 for c in i.skin)
        edge = _fixed_array(np.column_stack((xs, np.minimum(upper, lower + 1))))
        cv2.polylines(patch, [edge], False, lash, 2, cv2.LINE_AA, SHIFT)
        crease = _fixed_array(np.column_stack((xs, upper - 5 - 0.35 * tall * curve + 3 * blink)))
        cv2.polylines(patch, [crease], False, tuple(0.6 * rgb[4, 4].astype(float)), 1, cv2.LINE_AA, SHIFT)
        rgb[:] = cv2.GaussianBlur(patch, (3, 3), 0.6)

    def _draw_mouth(self, image: Image, *, opening: float, light: float) -> None:
        i = self.identity
        x, y = self._point(0, i.mouth_v)
        half = i.mouth_width * i.half_width * float(np.cos(self.turn)) * (1 - 0.12 * opening)
        lip = i.lip_height * i.half_height
        gap = opening * 0.13 * i.half_height
        left, top = int(x - half - 10), int(y - 2 * lip - 12)
        width, height = int(2 * half + 20), int(4.2 * lip + 0.13 * i.half_height + 28)
        box = np.s_[top : top + height, left : left + width]
        t = np.linspace(-1, 1, 21)
        arch = np.clip(1 - t * t, 0, 1)
        xs = x - left + half * t
        mid = y - top
        bow = lip * (0.85 * arch**0.7 - 0.28 * np.exp(-((t / 0.16) ** 2)))
        upper_out, upper_in = mid - bow - 0.15 * gap * arch, mid - 0.1 * lip * arch - 0.15 * gap * arch
        lower_in, lower_out = mid + 0.05 * lip * arch + 0.85 * gap * arch, mid + 1.1 * lip * arch**0.75 + gap * arch
        rgb = image[box][..., :3]
        patch = np.ascontiguousarray(rgb)
        skin = np.asarray(i.skin)
        red = skin * (1 - i.lip_red) + skin * np.array((0.95, 0.55, 0.58)) * i.lip_red
        level = float(self._shade(box, light).mean())
        upper = _fixed_array(np.concatenate((np.column_stack((xs, upper_out)), np.column_stack((xs, upper_in + 1))[::-1])))
        lower = _fixed_array(np.concatenate((np.column_stack((xs, lower_in - 1)), np.column_stack((xs, lower_out))[::-1])))
        inner = _fixed_array(np.concatenate((np.column_stack((xs, upper_in)), np.column_stack((xs, lower_in))[::-1])))
        cv2.fillPoly(patch, [lower], _rgb(red * 0.92 * level), cv2.LINE_AA, SHIFT)
        cv2.fillPoly(patch, [upper], _rgb(red * 0.74 * level), cv2.LINE_AA, SHIFT)
        cv2.fillPoly(patch, [inner], (38.0, 16.0, 16.0), cv2.LINE_AA, SHIFT)
        if opening > 0.25:
            teeth = np.concatenate(
                (np.column_stack((xs, upper_in))[4:-4], np.column_stack((xs, upper_in + np.minimum(0.45 * gap, 9) * arch))[4:-4][::-1])
            )
            cv2.fillPoly(patch, [_fixed_array(teeth)], _rgb(np.array((216, 208, 196)) * (0.3 + 0.5 * level)), cv2.LINE_AA, SHIFT)
        gleam = _fixed_array(np.column_stack((xs, 0.5 * (lower_in + lower_out) - 0.1 * lip)))[6:-6]
        cv2.polylines(patch, [gleam], False, _rgb(np.minimum(red * 1.1 * level + 8, 255)), 2, cv2.LINE_AA, SHIFT)
        rgb[:] = cv2.GaussianBlur(patch, (5, 5), 1.1)


def _lambert(height: Array, light: Array) -> Array:
    """Shade (about 0.3 to 1.2) of a height field in pixels: ambient and diffuse light plus a weak highlight (Blinn 1977)."""
    dx, dy = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=1 / 8)
    length = np.sqrt(dx * dx + dy * dy + 1)
    light = light / np.linalg.norm(light)
    diffuse = np.clip((-dx * light[0] - dy * light[1] + light[2]) / length, 0, 1)
    halfway = (light + np.array((0, 0, 1))) / np.linalg.norm(light + np.array((0, 0, 1)))
    gloss = np.clip((-dx * halfway[0] - dy * halfway[1] + halfway[2]) / length, 0, 1) ** 24
    return cv2.GaussianBlur((0.36 + 0.68 * diffuse + 0.12 * gloss).astype(np.float32), (0, 0), 1.0)


def _fixed(point: tuple[float, float]) -> tuple[int, int]:
    return round(point[0] * 2**SHIFT), round(point[1] * 2**SHIFT)


def _fixed_array(points: npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    return np.round(points * 2**SHIFT).astype(np.int32)


def _rgb(colour: npt.NDArray[np.floating]) -> Colour:
    return float(colour[0]), float(colour[1]), float(colour[2])
