"""Sound to events: the cochlea model of the Spiking Heidelberg Digits, a plain encoder beside it, whole folders."""

from ranvier.data.sound.cochlea import cochlea as cochlea
from ranvier.data.sound.files import read as read
from ranvier.data.sound.folder import Encoded as Encoded
from ranvier.data.sound.folder import encode_folder as encode_folder
from ranvier.data.sound.mel import mel_crossings as mel_crossings
