// node --import dormouse-client/register program.mjs, with DORMOUSE_SERVER set.
import { register } from "./index.js";

register(process.env.DORMOUSE_SERVER);
