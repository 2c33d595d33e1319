"""A tiny LLaVA on drawn scenes that names objects which are not there: how it is made and measured."""
