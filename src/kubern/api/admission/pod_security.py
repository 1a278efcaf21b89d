"""PodSecurity: placeholder filled below."""
from kubern.api.admission.attributes import CREATE, UPDATE, Plugin

PLUGIN = Plugin("PodSecurity", (CREATE, UPDATE), ())
