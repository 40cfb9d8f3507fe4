"""Which URLs are rewritten, how, and which are left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from embedder.fetch.renditions import CDNS, REFUSED_S, Rendition, Renditions, original_bytes

ALL = [cdn.name for cdn in CDNS]
C = "c_limit,w_1024,h_1024,f_jpg,q_90"
IMGIX = "w=1024&h=1024&fit=max&fm=jpg&q=90"
CLOUDINARY = "https://res.cloudinary.com/demo/image"
REMOTE = f"{CLOUDINARY}/fetch"
SHOPIFY = "https://cdn.shopify.com/s/files/1/0533/2089/files"
CONTENTFUL = "https://images.ctfassets.net/space/id/token"
SANITY = "https://cdn.sanity.io/images/zp7mbokg/production"
COMMONS = "https://upload.wikimedia.org/wikipedia/commons"


def rewritten(url: str, *, crop: int = 224) -> str | None:
    found = Renditions(ALL, crop=crop).of(url)
    return None if found is None else found.url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        # Cloudinary: before the version or the public id, behind the steps that are there.
        (f"{CLOUDINARY}/upload/sample.jpg", f"{CLOUDINARY}/upload/{C}/sample.jpg"),
        (f"{CLOUDINARY}/upload/sample", f"{CLOUDINARY}/upload/{C}/sample"),
        (f"{CLOUDINARY}/upload/v1312461204/sample.jpg", f"{CLOUDINARY}/upload/{C}/v1312461204/sample.jpg"),
        (f"{CLOUDINARY}/upload/v1/a/b/c.d.e.png", f"{CLOUDINARY}/upload/{C}/v1/a/b/c.d.e.png"),
        (f"{CLOUDINARY}/upload/v1/v2/x.jpg", f"{CLOUDINARY}/upload/{C}/v1/v2/x.jpg"),
        (f"{CLOUDINARY}/upload/shoes/red.jpg", f"{CLOUDINARY}/upload/{C}/shoes/red.jpg"),
        (f"{CLOUDINARY}/upload/shoes/v2/red.jpg", f"{CLOUDINARY}/upload/{C}/shoes/v2/red.jpg"),
        (f"{CLOUDINARY}/upload/my_shoes/red.jpg", f"{CLOUDINARY}/upload/{C}/my_shoes/red.jpg"),
        (f"{CLOUDINARY}/upload/w_300.jpg", f"{CLOUDINARY}/upload/{C}/w_300.jpg"),
        (f"{CLOUDINARY}/upload/v1/w_300/x.jpg", f"{CLOUDINARY}/upload/{C}/v1/w_300/x.jpg"),
        (f"{CLOUDINARY}/upload/w_300,c_fill/x.jpg", f"{CLOUDINARY}/upload/w_300,c_fill/{C}/x.jpg"),
        (f"{CLOUDINARY}/upload/w_300%2Cc_fill/x.jpg", f"{CLOUDINARY}/upload/w_300%2Cc_fill/{C}/x.jpg"),
        (f"{CLOUDINARY}/upload/f_auto,q_auto/v1/x.jpg", f"{CLOUDINARY}/upload/f_auto,q_auto/{C}/v1/x.jpg"),
        (f"{CLOUDINARY}/upload/t_card/x", f"{CLOUDINARY}/upload/t_card/{C}/x"),
        (
            f"{CLOUDINARY}/upload/c_crop,g_face,w_400/r_max/e_sepia:80/l_text:Arial_30:Hi%252C%20you/v7/a/x.jpg",
            f"{CLOUDINARY}/upload/c_crop,g_face,w_400/r_max/e_sepia:80/l_text:Arial_30:Hi%252C%20you/{C}/v7/a/x.jpg",
        ),
        (
            f"{CLOUDINARY}/upload/$w_10/if_w_gt_300,c_scale,w_300/if_else/o_50/if_end/x.jpg",
            f"{CLOUDINARY}/upload/$w_10/if_w_gt_300,c_scale,w_300/if_else/o_50/if_end/{C}/x.jpg",
        ),
        (f"{CLOUDINARY}/upload/x.jpg?_a=BAMAGSRg0", f"{CLOUDINARY}/upload/{C}/x.jpg?_a=BAMAGSRg0"),
        (f"{CLOUDINARY}/upload/caf%C3%A9/x%20y.jpg#top", f"{CLOUDINARY}/upload/{C}/caf%C3%A9/x%20y.jpg"),
        ("https://res-3.cloudinary.com/demo/image/upload/x.jpg", f"https://res-3.cloudinary.com/demo/image/upload/{C}/x.jpg"),
        ("https://acme-res.cloudinary.com/image/upload/v1/x.jpg", f"https://acme-res.cloudinary.com/image/upload/{C}/v1/x.jpg"),
        ("HTTPS://RES.Cloudinary.COM/demo/image/upload/x.jpg", f"HTTPS://RES.Cloudinary.COM/demo/image/upload/{C}/x.jpg"),
        # What is fetched by Cloudinary is a URL within the URL.
        (f"{REMOTE}/https://e.org/a/b.jpg", f"{REMOTE}/{C}/https://e.org/a/b.jpg"),
        (f"{REMOTE}/https://e.org/v1/w_3/b.jpg?x=1&x=2", f"{REMOTE}/{C}/https://e.org/v1/w_3/b.jpg?x=1&x=2"),
        (f"{REMOTE}/w_99/http%3A%2F%2Fe.org%2Fb.jpg%3Fx%3D1", f"{REMOTE}/w_99/{C}/http%3A%2F%2Fe.org%2Fb.jpg%3Fx%3D1"),
        # imgix and what speaks its language
        ("https://acme.imgix.net/a/b.png", f"https://acme.imgix.net/a/b.png?{IMGIX}"),
        ("https://acme.imgix.net/a.jpg?w=2000&auto=format,compress", f"https://acme.imgix.net/a.jpg?{IMGIX}"),
        ("https://acme.imgix.net/a.jpg?auto=enhance%2Cformat", f"https://acme.imgix.net/a.jpg?auto=enhance&{IMGIX}"),
        ("https://images.prismic.io/shop/a.jpg?auto=compress,format", f"https://images.prismic.io/shop/a.jpg?{IMGIX}"),
        (
            "https://images.unsplash.com/photo-1?ixid=M3w&ixlib=rb-4&w=1080&fit=max&q=80&fm=jpg&crop=entropy&cs=tinysrgb",
            f"https://images.unsplash.com/photo-1?ixid=M3w&ixlib=rb-4&crop=entropy&cs=tinysrgb&{IMGIX}",
        ),
        # Shopify
        (f"{SHOPIFY}/a.jpg?v=16", f"{SHOPIFY}/a.jpg?v=16&width=1024&format=jpg"),
        (f"{SHOPIFY}/a.JPEG?v=16&width=1946", f"{SHOPIFY}/a.JPEG?v=16&width=1024&format=jpg"),
        (f"{SHOPIFY}/a.png", f"{SHOPIFY}/a.png?width=1024"),
        (
            "https://acme.myshopify.com/cdn/shop/files/a.webp?v=2",
            "https://acme.myshopify.com/cdn/shop/files/a.webp?v=2&width=1024",
        ),
        # Contentful and Sanity, whose names tell the size
        (f"{CONTENTFUL}/a.jpg", f"{CONTENTFUL}/a.jpg?w=1024&h=1024&fm=jpg&q=90"),
        (f"{CONTENTFUL}/a.png?fm=webp&q=50", f"{CONTENTFUL}/a.png?fm=webp&q=50&w=1024&h=1024"),
        (f"{SANITY}/ab12-4000x3000.jpg?auto=format", f"{SANITY}/ab12-4000x3000.jpg?w=683&h=512&fit=max&fm=jpg&q=90"),
        (f"{SANITY}/ab12-600x6000.png", f"{SANITY}/ab12-600x6000.png?w=512&h=5120&fit=max"),
        # Cloudflare
        (
            "https://shop.example/cdn-cgi/image/width=2000,format=auto/a/b.jpg?v=1",
            "https://shop.example/cdn-cgi/image/format=jpeg,width=1024,height=1024,fit=scale-down,quality=90/a/b.jpg?v=1",
        ),
        (
            "https://shop.example/cdn-cgi/image/w=1600,onerror=redirect/https://e.org/a.png",
            "https://shop.example/cdn-cgi/image/onerror=redirect,width=1024,height=1024,fit=scale-down,quality=90/https://e.org/a.png",
        ),
        # Wikimedia makes some widths only.
        (f"{COMMONS}/a/ab/Caf%C3%A9_1.jpg", f"{COMMONS}/thumb/a/ab/Caf%C3%A9_1.jpg/1280px-Caf%C3%A9_1.jpg"),
        (
            "https://upload.wikimedia.org/wikipedia/en/7/7d/A.PNG",
            "https://upload.wikimedia.org/wikipedia/en/thumb/7/7d/A.PNG/1280px-A.PNG",
        ),
    ],
)  # fmt: skip
def test_the_same_picture_is_asked_for_in_a_smaller_size(url: str, expected: str) -> None:
    assert rewritten(url) == expected
    assert rewritten(expected) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/image/upload/x.jpg",
        "https://res.cloudinary.com.evil.example/demo/image/upload/x.jpg",
        "https://user:secret@res.cloudinary.com/demo/image/upload/x.jpg",
        "data:image/png;base64,AAAA",
        "",
        # signed, private, or no picture
        f"{CLOUDINARY}/upload/s--Ai4Znfl3--/v1/x.jpg",
        f"{CLOUDINARY}/upload/s--Ai4Znfl3--/c_fill,w_300/x.jpg",
        f"{REMOTE}/s--Ai4Znfl3--/https://e.org/x.jpg",
        f"{CLOUDINARY}/authenticated/s--Ai4Znfl3--/x.jpg",
        f"{CLOUDINARY}/private/x.jpg",
        f"{CLOUDINARY}/facebook/65646572251.jpg",
        f"{CLOUDINARY}/upload/x.jpg?__cld_token__=exp=1",
        f"{CLOUDINARY}/upload",
        f"{REMOTE}/e.org/x.jpg",
        "https://res.cloudinary.com/demo/video/upload/dog.jpg",
        "https://res.cloudinary.com/demo/raw/upload/x.jpg",
        "https://res.cloudinary.com/demo/images/x/red-shoe.jpg",
        f"{CLOUDINARY}/upload/zz_4/v1/x.jpg",  # a step that is not known has to stay the last
        f"{REMOTE}/zz_4/https://e.org/x.jpg",
        # with a shape of their own, or small already
        "https://acme.imgix.net/a.jpg?s=4f3e",
        "https://acme.imgix.net/a.jpg?w=4000&s=4f3e",
        "https://acme.imgix.net/a.jpg?w=400",
        "https://acme.imgix.net/a.jpg?fit=crop&w=2000&h=2000",
        "https://acme.imgix.net/a.jpg?rect=0,0,90,90",
        "https://acme.imgix.net/a.jpg?w=2000&w=300",
        "https://acme.imgix.net/a.jpg?w=0.5",
        "https://acme.imgix.net/a.jpg?dpr=2&w=2000",
        "https://acme.imgix.net/a.jpg?blend=x",
        f"{SHOPIFY}/a.jpg?width=533&v=1",
        f"{SHOPIFY}/a.jpg?width=2000&height=2000",
        f"{SHOPIFY}/a.jpg?width=2000&crop=center",
        f"{SHOPIFY}/a_2048x2048.jpg?v=1",
        f"{SHOPIFY}/a_grande.jpg",
        f"{SHOPIFY}/a_600x_crop_center@2x.progressive.jpg",
        "https://cdn.shopify.com/shopifycloud/x.jpg",
        f"{CONTENTFUL}/a.jpg?fit=pad&w=2000",
        f"{CONTENTFUL}/a.jpg?w=300",
        "https://images.secure.ctfassets.net/space/id/token/a.jpg",
        f"{SANITY}/ab12-800x500.jpg",
        f"{SANITY}/ab12-4000x3000.jpg?rect=0,0,10,10",
        f"{SANITY}/ab12-4000x3000.jpg?w=200",
        "https://imagedelivery.net/account/id/public",
        "https://shop.example/a.jpg",
        "https://shop.example/cdn-cgi/image/width=300/a.jpg",
        "https://shop.example/cdn-cgi/image/fit=cover,width=2000,height=2000/a.jpg",
        "https://shop.example/cdn-cgi/image/trim=20,width=2000/a.jpg",
        "https://shop.example/cdn-cgi/image/width=2000",
        f"{COMMONS}/thumb/a/ab/F.jpg/3840px-F.jpg",
        f"{COMMONS}/a/ab/F.svg",
        f"{COMMONS}/a/ab/F.tif",
        f"{COMMONS}/archive/a/ab/20200101000000!F.jpg",
        f"{COMMONS}/a/ab/{'%C3%A9' * 81}.jpg",
        "https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Signature=1",
    ],
)
def test_what_is_signed_has_a_shape_or_is_small_is_left(url: str) -> None:
    assert rewritten(url) is None


STEPS = st.sampled_from(["w_300,c_fill", "t_card", "e_sepia", "$a_3", "if_end", "f_auto", "c_limit,w_10", C])
NAMES = st.text("abcz019_.-,%v", min_size=1, max_size=12).filter(lambda name: name.strip(".") == name)
IDS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@given(st.sampled_from(["upload", "fetch"]), st.lists(STEPS, max_size=4), st.integers(1, 10**10), IDS)
def test_cloudinarys_public_id_and_steps_stay_what_they_are(
    type: str, steps: list[str], version: int, public_id: str
) -> None:
    source = f"v{version}/{public_id}" if type == "upload" else f"https://e.org/{public_id}"
    url = "/".join([f"{CLOUDINARY}/{type}", *steps, source])
    if steps and steps[-1] == C:
        assert rewritten(url) is None
    else:
        assert rewritten(url) == "/".join([f"{CLOUDINARY}/{type}", *steps, C, source])


PLACES = st.sampled_from(
    [CLOUDINARY, SHOPIFY, CONTENTFUL, SANITY, COMMONS, "https://a.imgix.net", "https://e.org/cdn-cgi/image"]
)
PIECES = st.text("abwhx019_.-,=%/?&#:@vfitcrop", max_size=40)


@given(PLACES, PIECES)
def test_the_host_stays_and_a_rendition_has_none(place: str, rest: str) -> None:
    url = f"{place}/{rest}"
    found = rewritten(url)
    if found is not None:
        assert URL(found, encoded=True).origin() == URL(place).origin()
        assert rewritten(found) is None


def test_a_network_that_sees_more_gets_more() -> None:
    url = f"{CLOUDINARY}/upload/x.jpg"
    assert rewritten(url, crop=384) == f"{CLOUDINARY}/upload/c_limit,w_1756,h_1756,f_jpg,q_90/x.jpg"
    assert rewritten(f"{COMMONS}/a/ab/F.jpg", crop=384) == f"{COMMONS}/thumb/a/ab/F.jpg/1920px-F.jpg"


@pytest.mark.parametrize(
    ("size", "enough"),
    [
        ((1024, 768), True),
        ((1024, 512), True),
        ((512, 1024), True),
        ((1024, 511), False),  # of 3000 x 1497, and its shorter side would be enlarged
        ((341, 1024), False),
        ((900, 300), True),  # it was not made smaller
        ((40, 40), True),
    ],
)
def test_a_long_and_narrow_picture_comes_out_too_small(size: tuple[int, int], enough: bool) -> None:
    found = Renditions(ALL, crop=224).of(f"{CLOUDINARY}/upload/x.jpg")
    assert found is not None
    assert found.is_enough(*size) is enough


def test_own_hosts_take_the_place_of_the_usual_ones() -> None:
    renditions = Renditions(["cloudinary@images.example.com", "shopify@*.acme.shop"], crop=224)

    def url(text: str) -> str | None:
        found = renditions.of(text)
        return None if found is None else found.url

    assert (
        url("https://images.example.com/image/upload/v1/x.jpg")
        == f"https://images.example.com/image/upload/{C}/v1/x.jpg"
    )
    assert (
        url("https://images.example.com/acme/image/upload/x.jpg")
        == f"https://images.example.com/acme/image/upload/{C}/x.jpg"
    )
    assert (
        url("https://www.acme.shop/cdn/shop/files/a.png")
        == "https://www.acme.shop/cdn/shop/files/a.png?width=1024"
    )
    assert url(f"{CLOUDINARY}/upload/x.jpg") is None


def test_a_refusal_is_remembered_of_its_cloud_and_for_some_minutes() -> None:
    now_s = 0.0
    renditions = Renditions(["cloudinary"], crop=224, clock=lambda: now_s)

    def asked(cloud: str) -> Rendition | None:
        return renditions.of(f"https://res.cloudinary.com/{cloud}/image/upload/x.jpg")

    strict = asked("strict")
    assert strict is not None
    renditions.refused(strict)
    assert asked("strict") is None
    assert asked("other") is not None
    now_s = REFUSED_S + 1
    assert asked("strict") is not None


def test_no_more_than_a_thousand_refusals_are_remembered() -> None:
    renditions = Renditions(["imgix"], crop=224)

    def asked(number: int) -> Rendition | None:
        return renditions.of(f"https://h{number}.imgix.net/x.jpg")

    for number in range(1001):
        found = asked(number)
        assert found is not None
        renditions.refused(found)
    assert asked(0) is not None
    assert asked(1) is None


def test_nothing_is_switched_on_unless_it_is_named() -> None:
    assert Renditions([], crop=224).of(f"{CLOUDINARY}/upload/x.jpg") is None
    assert Renditions(["imgix"], crop=224).of(f"{CLOUDINARY}/upload/x.jpg") is None
    with pytest.raises(ValueError, match="names 'imgux'; known are cloudflare, cloudinary, contentful"):
        Renditions(["imgux"], crop=224)


def test_the_size_of_the_original_is_read_where_it_is_said() -> None:
    timing = (
        'cld-fastly;dur=2,rtt;dur=9,content-info;desc="width=1024,bytes=90210,owidth=4000,obytes=2173000"'
    )
    assert original_bytes({"Server-Timing": timing}) == 2173000
    assert original_bytes({"Source-Length": "4711"}) == 4711
    assert original_bytes({"Server-Timing": "cdn-cache;desc=HIT", "Source-Length": "many"}) is None
