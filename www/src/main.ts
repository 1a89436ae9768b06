// The page's one script: it defines the elements that index.html uses.

import { showIcon } from "./style/icon.js";
import { keepForOffline } from "./engine/offline.js";
import "./elements/app.js";

showIcon();
keepForOffline();
