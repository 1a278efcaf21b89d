"""ResourceQuota: placeholder filled below."""
from kubern.api.admission.attributes import CREATE, UPDATE, Plugin

PLUGIN = Plugin("ResourceQuota", (CREATE, UPDATE), ())
