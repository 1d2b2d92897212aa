"""What result.json of the score page holds, for the API's description: a test holds what is sent (serve/examine.py) against it."""

from pydantic import BaseModel, Field

from dfdc_ray.serve.judge import VideoScore


class Face(BaseModel):
    """One picture: a face in a frame, or the first frame of a clip."""

    n: int = Field(description="Its number in /faces/N.jpg and /heat/N.jpg.")
    track_id: int = Field(description="Which face over time it belongs to.")
    frame: int = Field(description="Of the video, in the order in which frames are shown.")
    time_s: float = Field(description="Seconds from the video's first frame on, whose own timestamp need not be 0.")
    score: float = Field(description="0 real to 1 fake, as the model gives it: never calibrated. Hold it against raw_threshold.")
    counted: bool = Field(description="Whether its face is there long enough to decide.")
    heat: bool = Field(description="Whether there is a heat map of it.")


class Moment(BaseModel):
    """A sampled frame in which no face was found (or a clip throughout which)."""

    frame: int
    time_s: float


class Result(BaseModel):
    """A scored video and the evidence."""

    format: int = Field(description="Of this document.")
    checkpoint: str = Field(description="Which weights: the first digits of their SHA-256.")
    model: str
    threshold: float = Field(description="A video's score above it is called FAKE.")
    aggregation: str = Field(description="How a video's score is made of those of its frames.")
    min_coverage_percent: float = Field(description="Of the sampled frames, in which a face must be to count.")
    frames_per_video: int = Field(description="That are looked at, those within clips among them.")
    videos: list[VideoScore] = Field(description="One: scores of the video, of each face over time (tracks) and of each frame.")
    faces: list[Face]
    frames_without_face: list[Moment]
    calibrated: bool = Field(description="Whether the video's score is a probability.")
    unit: str = Field(description="What is scored: frames, or clips.")
    drawn: str = Field(description="Of several models, some of which have no heat maps, those that have; else empty.")
    shown: str | None = Field(description="The video's score as people are shown it.")
    guess: bool = Field(description="Whether the verdict is hardly more than a guess.")
    sureness: str | None = Field(
        description="What the verdict is worth, in words: by how far the score is from the threshold, and how sure it is."
    )
    meaning: str | None = Field(description="What it says, in words.")
    maps: bool = Field(description="Whether there is a /maps.png.")
