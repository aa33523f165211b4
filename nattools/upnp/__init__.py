"""UPnP Internet Gateway Devices: finding them (SSDP), reading them, and asking them (SOAP, GENA)."""
