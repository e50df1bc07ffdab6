"""What teachers said of an input, kept for all methods, seeds and processes that will ask again.

Without mixing, the crops of an image are finite, so each teacher need see each of them once. With the cache a run ends
in the same bits as without: entries are bound to everything that could change one (:mod:`.key`), computed in shapes of
batches that were tried to be safe (:mod:`.shapes`), checked at every start (:mod:`.checking`) and at every look
(:mod:`.entries`).
"""

from kdbench.training.teacher_cache.building import cache_of as cache_of
from kdbench.training.teacher_cache.cache import TeacherCache as TeacherCache
from kdbench.training.teacher_cache.place import CachePlace as CachePlace
