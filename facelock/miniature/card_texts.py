"""What the model cards say in words; :mod:`facelock.miniature.cards` adds trainings, figures and pictures."""

from __future__ import annotations

from dataclasses import dataclass

COMMON = (
    "Trained from scratch by this repository on characters rendered by `facelock/miniature/world.py`; no photo of a "
    "real person, no other model and no downloaded data went into it. It knows that drawn world and nothing else: "
    "real faces are out of its range. Identities are split by seed into `train`, `judge` and `heldout`; the figures "
    "below are from held-out ones. Licence: Apache-2.0."
)


RECIPE = (
    "On a GPU every batch is rendered anew, on CPUs batches are drawn from rendered sets. "
    "Optimiser: AdamW (betas .9 and .98, weight decay 1e-3), 150 steps of warm-up, then a cosine to 1 % of the peak; "
    "gradients clipped to norm 1; what ships is the exponential moving average of the weights (.997)."
)


@dataclass(frozen=True)
class Card:
    """The words of one card."""

    title: str
    parts: tuple[str, ...]
    text: str
    data: str
    """What it was trained on, and to do what."""
    limits: str
    reading: str = ""
    """How its figures are to be read."""
    sheets: tuple[tuple[str, str], ...] = ()
    """Pictures of measuring: name of the file under ``curves/``, without its suffix, and caption."""


CARDS: dict[str, Card] = {
    "faces/README.md": Card(
        title="Face pack: SCRFD-format detector and ArcFace-format recogniser",
        parts=("detector", "recogniser"),
        text=(
            "`FaceAnalysis(name=<this folder>)` of insightface opens it. `detector.onnx`: an SCRFD (Guo et al. "
            "2021, arXiv:2105.04714) of 1.0 M weights, strides 8, 16 and 32, two anchors, five landmarks; any "
            "side divisible by 32. `recogniser.onnx`: a small residual network on the 112 px ArcFace crop, "
            "trained to regress the identity's parameters and to tell the people of its split apart with CosFace (Wang "
            "et al. 2018, arXiv:1801.09414), then whitened within identities and laid into 512 dimensions. It is the "
            "lock's recogniser: what it says of a locked clip is no evidence, see the judge."
        ),
        data=(
            "Detector: rendered frames, and what the blueprint's autoencoder leaves of frames, laid out as "
            "mosaics with blur, noise and colour shifts; one frame in ten shows nobody. Recogniser: crops of "
            "`train` identities under random hair, glasses, beard, pose, expression and light, cropped by "
            "jittered landmarks, 60 of 100 degraded (down to 35 % of the resolution, noise, colour shifts), none "
            "laughing as broadly as people in clips do, though the figures below hold such pictures too. Its "
            "second sitting went on from the file that the first had left, its batch norms folded and at rest, with "
            "new heads; what came out is turned to lie near what was there before, which changes no cosine."
        ),
        limits=(
            "It tells apart what the drawn world varies. Siblings that differ in a few parameters only are beyond "
            "it in part: see above before you cast two lookalikes in one clip. Heads turned by more than 32° were "
            "never seen in training. The detector is made for a detection size of 128, as the bundled recipes have: at "
            "larger ones it misses a face that fills the picture, or finds it more than once. "
            "Real faces: install insightface's or OpenCV's packs instead."
        ),
        reading=(
            "`same` and `different` are cosines of pairs of held-out pictures; `far_1e3` is the threshold that "
            "one in a thousand pairs of strangers passes, `tar_far_1e3` the share of pairs of one person above "
            "it. The catalog's thresholds are those of the degraded pictures. Siblings are reported apart: a "
            "sibling is a held-out person's copy in which a few parameters of the face (some of them hardly "
            "visible, or of marks that are absent) were drawn anew. The share above `far_1e3` is how often it "
            "passes for that person."
        ),
    ),
    "judge/README.md": Card(
        title="Judge: a CRATE transformer",
        parts=("judge",),
        text=(
            "A white-box transformer (Yu et al. 2023, arXiv:2306.01129): subspace attention with tied Q, K and V "
            "(MSSA) and an ISTA step in place of the MLP. Another family, other identities, other pictures than "
            "the lock's recogniser, and no stage optimises it. Input: (N, 3, 112, 112) in [0, 1], ArcFace crop; "
            "output: 64 numbers."
        ),
        data=(
            "Crops of the `judge` identities, rendered at half the size of the lock's pictures, prepared as for "
            "the lock's recogniser: regression of the identity's parameters and CosFace. Its second sitting went on "
            "from the first's weights with new heads, its third, again with new ones, from portraits that smile and "
            "laugh as broadly as people in clips do."
        ),
        limits=(
            "It is made to be independent of the lock, not to be best. Hair, glasses and beard are no part of an "
            "identity here, so it says nothing about them."
        ),
        reading=(
            "As in the face pack's card: strangers set the thresholds, siblings are reported apart, clean and "
            "degraded."
        ),
    ),
    "aligner.md": Card(
        title="Aligner, inswapper format",
        parts=("reader", "identity_reader", "aligner"),
        text=(
            "`aligner.onnx`: `target` (N, 3, 128, 128), `source` (N, 512), and `emap` (the unit matrix). Analysis "
            "by synthesis, as 3-D morphable model methods have it (Blanz & Vetter 1999; Thies et al. 2019, "
            "arXiv:1904.12356): one network reads pose, expression, gaze, light, glasses and beard off the crop, "
            "another reads the face's parameters off the identity embedding alone, **the world's own renderer, as "
            "a fixed differentiable layer, draws that face in that moment**, "
            "and a small U-Net blends in its outline and the hair. Be clear about what this means: the "
            "decoder knows the drawn world exactly, so its figures say what the closed loop does with a good "
            "aligner, not how well an aligner can be learned for real faces. The identity travels only through "
            "the 512 numbers."
        ),
        data=(
            "Reader: frames and windows as rendered and as the autoencoder leaves them, with the renderer's exact "
            "labels; least squares, the error in what changes within a window weighs double. Identity reader: "
            "embeddings of people whom the recogniser did not learn from, and their exact parameters. Compositor: "
            "pairs of two people under one moment; input the one, mostly degraded, target the other, embedding "
            "from another picture of the target."
        ),
        limits=(
            "PSNR here measures where features are more than how sharp: the true face itself, drawn one pixel "
            "aside, is listed below the bounds. Outside the face (ears, neck, hair behind the head) the frame is "
            "mostly kept, so the whole crop cannot come as near as the face. Hair stays the frame's: the "
            "embedding says nothing about it, as with inswapper. What the autoencoder lost of mouth and eyelids "
            "is not known to any aligner."
        ),
        reading=(
            "Each case is a frame of a held-out clip in insightface's 128 px crop, and another held-out person "
            "who is wanted in its place; the reference is another picture of that person, the true render is that "
            "person on the rays of the very crop. *clean* is the crop as rendered at 128 px, *degraded* is that "
            "blurred and noisy, *decoded* is what the blueprint's autoencoder leaves of the 64 px clip, which is "
            "what the lock meets. The *face* is the front of the head that no hair hides, without a rim of 4 px. "
            "Landmarks and turns come from the face detector; nods, glasses, eyelids, gaze, mouth and light "
            "from comparison with renders of the face with that parameter at several values "
            "(`facelock/miniature/exam.py`), so no network that was examined is asked. For inputs the same is "
            "said of the person in them: it is what the frame still shows."
        ),
        sheets=(
            (
                "aligner_faces",
                "Held-out: left four from a clean frame, right four from what the autoencoder leaves.",
            ),
        ),
    ),
    "restorer.md": Card(
        title="Face restorer, identity-conditioned, inswapper format",
        parts=("restorer",),
        text=(
            "`restorer.onnx`: the aligner's architecture with a larger U-Net, at 128 pixels, which trusts its "
            "input more than its drawing. What is said of the aligner's decoder holds here too."
        ),
        data=(
            "Pairs as for the aligner, but the right person, blurred, is the input in 85 of 100 pictures; readers "
            "are the aligner's."
        ),
        limits=(
            "It restores towards the embedding: given the wrong one, it paints the wrong person. It is meant for "
            "blur and compression; what is sharp already, it can only keep."
        ),
        reading="As in the aligner's card, with the wanted person in the clip already.",
        sheets=(
            (
                "restorer_faces",
                "Held-out: left four from a clean crop, right four from what the autoencoder leaves.",
            ),
        ),
    ),
    "upscaler.md": Card(
        title="Upscaler ×4",
        parts=("upscaler",),
        text=(
            "`upscaler.onnx`: a compact network in the manner of SRVGG (Real-ESRGAN, Wang et al. 2021, "
            "arXiv:2107.10833), `input` (N, 3, H, W) in [0, 1] to (N, 3, 4H, 4W)."
        ),
        data=(
            "Rendered frames at four times the size and their averages, half of them softened as a decoded latent "
            "is, with a little noise; L1 on pixels and edges."
        ),
        limits=(
            "It sharpens what the drawn world has: edges, hair, eyes. It knows no film grain, no text and no "
            "compression blocks."
        ),
        reading="Against the render at the larger size; bicubic beside it.",
        sheets=(("upscaler_faces", "Held-out frames, ×4."),),
    ),
    "tiny_decoder.md": Card(
        title="Tiny decoder, TAEHV's layout",
        parts=("tiny_decoder",),
        text=(
            "`tiny_decoder.safetensors`: normalised latents of the blueprint (N, 16, F, 16, 16) to frames (N, 4F - "
            "3, 3, 64, 64) in [0, 1], at a small part of the autoencoder's cost, for identity guidance "
            "(docs/guidance.md). The layout and the names of its tensors are those of TAEHV "
            "(github.com/madebyollin/taehv): memory blocks in three stages. Distilled from the blueprint's own "
            "autoencoder."
        ),
        data="Latents of rendered clips and the autoencoder's own frames of them.",
        limits="A preview for guidance: it softens faces further. Never the frames that are delivered.",
        reading="Against what the autoencoder shows of the same latents, not against the truth.",
    ),
    "blueprint/README.md": Card(
        title="Blueprint: SkyReels-V2 diffusion forcing, miniature",
        parts=("vae", "blueprint"),
        text=(
            "A diffusers folder: `AutoencoderKLWan` (×4 in space and time, 16 channels), "
            "`SkyReelsV2Transformer3DModel` (8 layers of 256, patches of 4 × 4 latents), `UMT5EncoderModel` (2 "
            "layers) with a word-level tokenizer, `UniPCMultistepScheduler` with flow shift 3, told that the "
            "transformer says the clean latents (`prediction_type`: `sample`; docs/training.md). Trained by "
            "diffusion forcing (Chen et al. 2024, arXiv:2407.01392; SkyReels-V2, arXiv:2504.13074): one noise "
            "level per latent frame, so that it continues from clean context frames. 64 × 64 pixels, 12 frames a "
            "second, windows of 17 frames. Prompts: docs/vocabulary.md. "
            "`SkyReelsV2DiffusionForcingPipeline.from_pretrained` opens it; give it `max_sequence_length=24`. It "
            "forgets faces by construction and by size: that is the disease FaceLock cures."
        ),
        data=(
            "Autoencoder: windows of 17 frames of rendered clips; L1 on pixels and edges, weighted towards the face "
            "and most towards eyes and mouth, and what a reader of pose, expression, gaze and glasses, which learns "
            "along with it, cannot tell from its frames (`read`, `unread`). Its fourth and fifth sitting went on "
            "from 8 channels: the new ones began at chance, the old ones were held near what they had been (`apart`). "
            "In its seventh that reader learned from the true frames beside (`taught`); in its eighth people act more "
            "broadly, and mouths count more. "
            "Transformer: their latents with captions from the drawn world's vocabulary, words left out at "
            "random, one noise level per latent; an error in the middle of an eye or mouth counts 17 times as much as "
            "one in the background. Its sixth sitting went on from a network of 6 layers that said velocities: two "
            "more began as the identity, the last projection at chance. In its eighth, on a CPU at a peak of 2e-4, "
            "captions always told glasses and beard; its ninth learned the eighth autoencoder's latents, at a peak of "
            "4e-4; its tenth, on a CPU again at 2e-4, eyes that narrow in smiles and laughs, and heads thrown back; "
            "its eleventh went on from the mean of the ninth's weights and the tenth's, in batches of 64 at 3e-4."
        ),
        limits=(
            "64 × 64 pixels, one person, the vocabulary's words; anything else in a prompt is ignored. 17 frames "
            "become 5 latents, so fast mouths and some blinks are lost, and faint smiles: words for actions "
            "are followed in four clips of five, smiles in seven of ten, and read off the autoencoder's own frames of "
            "true clips in nine of ten (docs/benchmarks.md). It does not know faces: two clips of one prompt show two "
            "people."
        ),
        sheets=(("vae_faces", "Held-out clips through the autoencoder: frame 9 of 17."),),
    ),
}
"""File under ``models/miniature`` → what it says."""
