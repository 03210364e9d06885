"""What the name of a region says: a nodule, a target with a margin, an organ; or whose it is.

Names follow AAPM TG-263 (Standardizing Nomenclatures in Radiation Oncology, 2018), the class names
of TotalSegmentator, or a clinic's own habit, in any case and with any separators. A name is an
organ's if all of its words are known and one of them is an organ: ``Lung_L``, ``Left lung``,
``LUNG LT`` and ``lung_upper_lobe_left`` are, ``lung nodule`` isn't.
"""

import re


def _words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NODULE_WORDS = _words_of(
    """
    gtv gtvp gtvn gtvnd gtvt gtvs igtv igtvp nodule nodules nodulus nodulo lesion lesions tumor
    tumors tumour tumours tumeur mass masses metastasis metastases met mets neoplasm neoplasms
    cancer carcinoma adenocarcinoma nsclc sclc ggo ggn hamartoma granuloma herd rundherd knoten
    """
)

_MARGIN_WORDS = _words_of("ctv ctvp ctvn ctvs ptv ptvp ptvn ptvs itv itvs ictv iptv")
"""ICRU reports 62 and 83: volumes that add a margin for spread, motion or setup."""

_ORGAN_WORDS = _words_of(
    """
    lung lungs lunge lungen pulmo pulmonary lobe lobes bronchus bronchi bronchial bronchialtree
    airway airways trachea carina heart herz cardiac atrium atria ventricle myocardium
    pericardium auricle atrial appendage valve coronary lad aorta aortic artery arteries arteria
    vein veins vena venacava svc ivc cava greatves vessel vessels brachiocephalic brachiocephls
    brachioceph subclavian carotid iliac jugular portal celiac mesenteric femoral azygos
    vertebral humeral hypophyseal esophagus oesophagus esoph eso osophagus mediastinum
    mediastinal hilum hilus hilums thymus thyroid parathyroid diaphragm chestwall chest thorax
    thoracic duct pleura rib ribs rippe costal cartilage cartilages cartlg costae sternum
    clavicle clavicles clavicula scapula scapulae humerus radius ulna vertebra vertebrae spine
    spinal cord canal myelon spinalcord spinalcanal medulla medullaris vb vbs disc discs sacrum
    coccyx cauda equina thecal brain brainstem cerebrum cerebellum hemisphere hemispheres pons
    optic chiasm nerve nrv nrvs opticnrv opticchiasm eye eyes lens cornea retina retinas orbit
    cochlea ear ears pituitary hippocampus hippocampi hypothalmus hypothalamus pineal temporal
    frontal occipital parietal mandible maxilla hyoid mastoid zygomatic zygomatics bone bones
    bonemarrow marrow skull calvarium tooth teeth parotid parotids submandibular submand
    submands subling sublings lacrimal lacrimals oral nasal nose nasopharynx oropharynx
    hypopharynx nasalconcha pharynx laryngl larynx glottis supraglottis vocalcord vocalcords
    tongue lip lips palate hardpalate tonsil arytenoid cricoid cricopharyngeus face neck scalp
    liver leber hepatic gallbladder bile bileduct spleen splenic milz pancreas pancjejuno
    stomach magen duodenum bowel bowels intestine jejunum ileum cecum colon sigmoid rectum
    rectal mesorectum anus anal appendix kidney kidneys niere nieren renal adrenal adrenals
    gland glands glnd ureter ureters ureterdivert urethra bladder urinary prostate prostatebed
    seminalves seminal vesicle vesicles penis penilebulb scrotum testis testes uterus cervix
    ovary ovaries vagina vaginalcuff vulva genitals parametrium perineum peritoneum breast
    breasts mamma mammae heartvalve femur femurs femoralhead fibula tibia patella pelvis pelvic
    hip hips ilium ischium pubis pubicsymphys acetabulum acetabulums joint elbow knee
    growthplate hand foot arm arms shoulder musc muscle muscles gluteus iliopsoas psoas
    autochthon quadratus tendon lig ligament plexus plex brachialplex brachialplexs
    brachialplexus sacralplex ln lymph lymphnode lymphnodes sclav imn imns skin haut body
    koerper korper external outline patient couch couchsurface couchinterior table tabletop
    tisch support fixation bolus air gas fat tissue tissues softtissue blood fluid effusion cyst
    edema lead leads wire clip clips marker markers fiducial fiducials foley pacemaker icd
    prosthesis stent catheter artifact artefact artifacts artefacts isocenter isocentre iso ring
    rings dose isodose dosis avoidance avoid scar surgicalbed tumorbed tumourbed bag cavity spc
    strct surf sys fossa proc sinus cist cn dens ethmoid sphenoid incus malleus stapes vomer
    spongiosum cavernosum sphincter cribriformplate pterygoid oar oars prv pleural pericardial
    trunc extremities subcutaneous torso skeletal bronchia postop preop idl eval
    """
)
"""Of the two lists, with usual spellings; also what lies about a patient and what plans need."""

_MODIFIERS = _words_of(
    """
    l r lt rt left right li re links rechts a p i s m ls rs anterior posterior ant post superior
    inferior sup inf lateral medial lat med central centrals apical upper lower middle mid
    proximal distal prox dist nadj main common asc desc ascending descending decending
    transverse ext int exts externals internal internals peripheral total all sum both bilateral
    whole combined comb wall cortex core trunk tree branch side head tail shaft shafts base
    process large small minor major maximus medius minimus externus soft hard act cerv thor lum
    sac quad root surface condyloid coronoid and of the minus not with without in ohne und v c t
    th n ii iii iv vi vii viii ix x xi xii ia ib iia iib va vc full part structure organ organs
    segment roi auto ai dl final copy new old edit edited contour manual opt plan planning
    expanded cflx constrict digastric masseter platysma sclmast ostomy mitral tricuspid pulmonic
    suprasellar pontine maxilry retrophar retrophars retrosty supraclav ax pectoral pectorals
    subscap subscaps bronchpulm bronchpulms diaphragmatic inguinofem intercostal intercostals
    ligamentarter mediastinals obturator paraaortic paramammary paramammarys parasternal
    parasternals pelvics portahepatis presacral pulmonarys supmammary trachbrnchs hepatogastrc
    glenohum tm sg suprapatel ventricular palatine prostatc laterals lll lul rll rml rul mask
    boost implant normal z ce station summe gesamt node nodes
    """
)

_PLAIN_WORDS = _words_of(
    """
    solid subsolid nonsolid ground glass opacity target primary secondary volume region roi segment
    label component gy cgy phase avg mip ct pet node nodes gross lung lungs lobe l r lt rt left
    right upper lower middle apical basal lul lll rul rml rll and in of the
    """
)
"""Words beside those of a nodule that say of no patient who it is."""

_ANATOMY = _ORGAN_WORDS | _MODIFIERS
_WORD = re.compile(r"[^\W\d_]+|\d+")
_CAPITAL_WITHIN = re.compile(r"(?<=[a-zäöüß])(?=[A-ZÄÖÜ])")
_MINUS_TARGET = re.compile(
    r"(.*?)[\s_]*(?:-|minus|not|sub|excl|without|w/o)[\s_]*(?:i?gtv|i?ctv|itv|ptv)",
    re.IGNORECASE | re.DOTALL,
)
_MOST_DIGITS = 3
_PLAIN_TEXT = re.compile(r"[^\W_][\w .,+()/%-]*")
"""Nothing that a spreadsheet takes for a formula."""


def says_nodule(name: str) -> bool:
    """Tell whether a name says that a lesion itself is outlined.

    Examples
    --------
    >>> says_nodule("GTV-1"), says_nodule("Lung nodule"), says_nodule("PTV"), says_nodule("Lung_L")
    (True, True, False, False)
    """
    return bool(_NODULE_WORDS & set(_split(name))) and not is_organ(name)


def has_margin(name: str) -> bool:
    """Tell whether a name is that of a target with a margin (CTV, ITV, PTV).

    Examples
    --------
    >>> has_margin("PTV_Lung_R"), has_margin("ptv60"), has_margin("IGTV")
    (True, True, False)
    """
    return bool(_MARGIN_WORDS & set(_split(name)))


def is_organ(name: str) -> bool:
    """Tell whether a name is that of an organ, of a device or of an aid of planning.

    An organ without the target (``Lungs-GTV`` of TG-263) is an organ.

    Examples
    --------
    >>> is_organ("Lung_L"), is_organ("SpinalCord_PRV05"), is_organ("rib_left_1"), is_organ("GTV-1")
    (True, True, True, False)
    >>> is_organ("Lungs-GTV"), is_organ("Left lung nodule")
    (True, False)
    """
    without_target = _MINUS_TARGET.match(name)
    if without_target and is_organ(without_target[1]):
        return True
    words = [word for word in _split(name) if not word.isdigit()]
    return all(_is_known(word, _ANATOMY) for word in words) and any(
        _is_known(word, _ORGAN_WORDS) for word in words
    )


def names_nobody(name: str) -> bool:
    """Tell whether a name can be passed on: known words, too few digits for a date or number.

    Examples
    --------
    >>> names_nobody("GTV-1"), names_nobody("PTV_60Gy"), names_nobody("GTV Miller")
    (True, True, False)
    >>> names_nobody("GTV 31.01.24"), names_nobody("Lungs-GTV Miller")
    (False, False)
    """
    words = _split(name)
    if not _PLAIN_TEXT.fullmatch(name):
        return False
    if sum(len(word) for word in words if word.isdigit()) > _MOST_DIGITS:
        return False
    targets = _NODULE_WORDS | _MARGIN_WORDS
    others = [word for word in words if not word.isdigit() and word not in targets]
    return all(word in _PLAIN_WORDS for word in others) or (
        is_organ(name) and all(_is_known(word, _ANATOMY) for word in others)
    )


def _split(name: str) -> list[str]:
    """Return the words in small letters; ``SpinalCord`` are two, unless known as one."""
    words: list[str] = []
    for run in _WORD.findall(name):
        whole = run.casefold()
        is_one = whole in _ANATOMY
        words += [whole] if is_one else [part.casefold() for part in _CAPITAL_WITHIN.split(run)]
    return words


def _is_known(word: str, known: frozenset[str]) -> bool:
    """Look a word up, also in the plural and where two words are written as one."""
    if word in known or word.removesuffix("s") in known:
        return True
    pairs = ((word[:place], word[place:]) for place in range(3, len(word) - 2))
    return any(first in known and last in known for first, last in pairs)
